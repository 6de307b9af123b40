package localxds

import (
	"cmp"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// The words of the file, and what they mean.

func protocols() map[string]mesh.TunnelProtocol {
	return map[string]mesh.TunnelProtocol{"TCP": mesh.TCP, "HBONE": mesh.HBONE}
}

func networkModes() map[string]mesh.NetworkMode {
	return map[string]mesh.NetworkMode{"Standard": mesh.NetworkStandard, "HostNetwork": mesh.NetworkHost}
}

func statuses() map[string]mesh.Health {
	return map[string]mesh.Health{"Healthy": mesh.Healthy, "Unhealthy": mesh.Unhealthy}
}

func tunnels() map[string]mesh.AppTunnelProtocol {
	return map[string]mesh.AppTunnelProtocol{"NONE": mesh.AppTunnelNone, "PROXY": mesh.AppTunnelPROXY}
}

func types() map[string]mesh.WorkloadType {
	return map[string]mesh.WorkloadType{
		"": mesh.Deployment, "deployment": mesh.Deployment, "cronjob": mesh.CronJob, "pod": mesh.Pod, "job": mesh.Job,
	}
}

func workload(n *yaml.Node) (*mesh.Workload, error) {
	f, err := open(n, []string{"workloadIps", "namespace", "services"},
		"waypoint", "networkGateway", "protocol", "networkMode", "uid", "name", "trustDomain", "serviceAccount",
		"network", "workloadName", "workloadType", "canonicalName", "canonicalRevision", "hostname", "node",
		"nativeTunnel", "applicationTunnel", "authorizationPolicies", "status", "clusterId", "locality", "capacity")
	if err != nil {
		return nil, err
	}
	w := &mesh.Workload{Capacity: 1}
	f.get("uid", &w.UID)
	f.get("name", &w.Name)
	f.get("namespace", &w.Namespace)
	f.get("hostname", &w.Hostname)
	f.get("network", &w.Network)
	f.get("clusterId", &w.Cluster)
	f.get("trustDomain", &w.TrustDomain)
	f.get("serviceAccount", &w.ServiceAccount)
	f.get("node", &w.Node)
	f.get("canonicalName", &w.CanonicalName)
	f.get("canonicalRevision", &w.CanonicalRevision)
	f.get("workloadName", &w.WorkloadName)
	f.get("nativeTunnel", &w.NativeTunnel)
	f.get("capacity", &w.Capacity)
	enum(f, "protocol", &w.Protocol, protocols())
	enum(f, "networkMode", &w.NetworkMode, networkModes())
	enum(f, "status", &w.Status, statuses())
	enum(f, "workloadType", &w.WorkloadType, types())
	sub(f, "waypoint", &w.Waypoint, gateway)
	sub(f, "networkGateway", &w.NetworkGateway, gateway)
	sub(f, "applicationTunnel", &w.AppTunnel, appTunnel)
	sub(f, "locality", &w.Locality, locality)
	sub(f, "services", &w.Services, memberships)
	w.Addresses = all(f, "workloadIps", address)
	w.Policies = all(f, "authorizationPolicies", policyName)
	return w, f.err
}

// gateway decodes {destination: "network/address" or "namespace/hostname", hboneMtlsPort}.
func gateway(n *yaml.Node) (*mesh.Gateway, error) {
	f, err := open(n, []string{"destination", "hboneMtlsPort"})
	if err != nil {
		return nil, err
	}
	var destination string
	g := &mesh.Gateway{}
	f.get("destination", &destination)
	f.get("hboneMtlsPort", &g.HBONEPort)
	if f.err != nil {
		return nil, f.err
	}
	if g.Address, err = mesh.ParseNetAddr(destination); err == nil {
		return g, nil
	}
	g.Address = mesh.NetAddr{}
	if g.Service, err = mesh.ParseServiceName(destination); err != nil {
		f.fail("destination", "%q: want network/address or namespace/hostname", destination)
	}
	return g, f.err
}

func appTunnel(n *yaml.Node) (*mesh.AppTunnel, error) {
	f, err := open(n, []string{"protocol"}, "port")
	if err != nil {
		return nil, err
	}
	t := &mesh.AppTunnel{}
	enum(f, "protocol", &t.Protocol, tunnels())
	f.get("port", &t.Port)
	return t, f.err
}

func locality(n *yaml.Node) (l mesh.Locality, err error) {
	f, err := open(n, []string{"region", "zone", "subzone"})
	if err != nil {
		return l, err
	}
	f.get("region", &l.Region)
	f.get("zone", &l.Zone)
	f.get("subzone", &l.Subzone)
	return l, f.err
}

// memberships decodes {"namespace/hostname": {service port: target port}}.
func memberships(n *yaml.Node) ([]mesh.Membership, error) {
	f, err := openAny(n)
	if err != nil {
		return nil, err
	}
	var out []mesh.Membership
	for key, value := range f.by {
		name, err := mesh.ParseServiceName(key)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", value.Line, err)
		}
		m := mesh.Membership{Service: name}
		sub(f, key, &m.Ports, ports)
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b mesh.Membership) int {
		return cmp.Or(cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Hostname, b.Service.Hostname))
	})
	return out, f.err
}
