package workload

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// ToMesh converts a resource that came from the wire; without an error exactly
// one of the results is non-nil. An error names the field and the reason.
func ToMesh(a *Address) (*mesh.Workload, *mesh.Service, error) {
	switch t := a.GetType().(type) {
	case *Address_Workload:
		w, err := ToWorkload(t.Workload)
		if err != nil {
			return nil, nil, fmt.Errorf("workload.%w", err)
		}
		return w, nil, nil
	case *Address_Service:
		s, err := ToService(t.Service)
		if err != nil {
			return nil, nil, fmt.Errorf("service.%w", err)
		}
		return nil, s, nil
	}
	return nil, nil, errors.New("type: neither workload nor service is set")
}

// ToWorkload converts a workload that came from the wire.
func ToWorkload(w *Workload) (*mesh.Workload, error) {
	out := &mesh.Workload{
		UID:               mesh.UID(w.GetUid()),
		Name:              w.GetName(),
		Namespace:         w.GetNamespace(),
		Hostname:          w.GetHostname(),
		Network:           mesh.Network(w.GetNetwork()),
		Cluster:           cmp.Or(mesh.Cluster(w.GetClusterId()), mesh.DefaultCluster),
		TrustDomain:       cmp.Or(w.GetTrustDomain(), mesh.DefaultTrustDomain),
		ServiceAccount:    cmp.Or(w.GetServiceAccount(), mesh.DefaultServiceAccount),
		Node:              w.GetNode(),
		CanonicalName:     w.GetCanonicalName(),
		CanonicalRevision: w.GetCanonicalRevision(),
		WorkloadType:      toWorkloadType(w.GetWorkloadType()),
		WorkloadName:      w.GetWorkloadName(),
		NativeTunnel:      w.GetNativeTunnel(),
		Capacity:          1,
	}
	if w.Capacity != nil {
		out.Capacity = w.Capacity.GetValue()
	}
	if l := w.GetLocality(); l != nil {
		out.Locality = mesh.Locality{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}
	}
	if err := toWorkloadEnums(w, out); err != nil {
		return nil, err
	}
	return out, toWorkloadLists(w, out)
}

func toWorkloadEnums(w *Workload, out *mesh.Workload) error {
	switch w.GetTunnelProtocol() {
	case TunnelProtocol_NONE:
		out.Protocol = mesh.TCP
	case TunnelProtocol_HBONE:
		out.Protocol = mesh.HBONE
	case TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("tunnel_protocol: LEGACY_ISTIO_MTLS is not supported")
	default:
		return fmt.Errorf("tunnel_protocol: unknown value %d", w.GetTunnelProtocol())
	}
	switch w.GetStatus() {
	case WorkloadStatus_HEALTHY:
		out.Status = mesh.Healthy
	case WorkloadStatus_UNHEALTHY:
		out.Status = mesh.Unhealthy
	default:
		return fmt.Errorf("status: unknown value %d", w.GetStatus())
	}
	switch w.GetNetworkMode() {
	case NetworkMode_STANDARD:
		out.NetworkMode = mesh.NetworkStandard
	case NetworkMode_HOST_NETWORK:
		out.NetworkMode = mesh.NetworkHost
	default:
		return fmt.Errorf("network_mode: unknown value %d", w.GetNetworkMode())
	}
	return nil
}

func toWorkloadLists(w *Workload, out *mesh.Workload) (err error) {
	for i, b := range w.GetAddresses() {
		addr, err := toAddr(b)
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		out.Addresses = append(out.Addresses, addr)
	}
	if out.Waypoint, err = toGateway(w.GetWaypoint()); err != nil {
		return fmt.Errorf("waypoint.%w", err)
	}
	if out.NetworkGateway, err = toGateway(w.GetNetworkGateway()); err != nil {
		return fmt.Errorf("network_gateway.%w", err)
	}
	if out.AppTunnel, err = toAppTunnel(w.GetApplicationTunnel()); err != nil {
		return fmt.Errorf("application_tunnel.%w", err)
	}
	for key, list := range w.GetServices() {
		m, err := toMembership(key, list)
		if err != nil {
			return fmt.Errorf("services[%q]: %w", key, err)
		}
		out.Services = append(out.Services, m)
	}
	slices.SortFunc(out.Services, func(a, b mesh.Membership) int { return compareNames(a.Service, b.Service) })
	for i, key := range w.GetAuthorizationPolicies() {
		name, err := mesh.ParsePolicyName(key)
		if err != nil {
			return fmt.Errorf("authorization_policies[%d]: %w", i, err)
		}
		out.Policies = append(out.Policies, name)
	}
	return nil
}

func compareNames(a, b mesh.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
}

// toWorkloadType takes an unknown number for a deployment: the type is only a label.
func toWorkloadType(t WorkloadType) mesh.WorkloadType {
	switch t {
	case WorkloadType_CRONJOB:
		return mesh.CronJob
	case WorkloadType_POD:
		return mesh.Pod
	case WorkloadType_JOB:
		return mesh.Job
	}
	return mesh.Deployment
}

func toAddr(b []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return addr, fmt.Errorf("%d bytes, want 4 or 16", len(b))
	}
	return addr.Unmap(), nil
}

func toGateway(g *GatewayAddress) (*mesh.Gateway, error) {
	if g == nil {
		return nil, nil
	}
	port, err := toPort(g.GetHboneMtlsPort())
	if err != nil {
		return nil, fmt.Errorf("hbone_mtls_port: %w", err)
	}
	out := &mesh.Gateway{HBONEPort: port}
	switch d := g.GetDestination().(type) {
	case *GatewayAddress_Hostname:
		out.Service = mesh.ServiceName{Namespace: d.Hostname.GetNamespace(), Hostname: d.Hostname.GetHostname()}
		if out.Service.Hostname == "" {
			return nil, errors.New("hostname.hostname: empty")
		}
	case *GatewayAddress_Address:
		addr, err := toAddr(d.Address.GetAddress())
		if err != nil {
			return nil, fmt.Errorf("address.address: %w", err)
		}
		out.Address = mesh.NetAddr{Network: mesh.Network(d.Address.GetNetwork()), Addr: addr}
	default:
		return nil, errors.New("destination: neither hostname nor address is set")
	}
	return out, nil
}

func toAppTunnel(t *ApplicationTunnel) (*mesh.AppTunnel, error) {
	if t == nil {
		return nil, nil
	}
	port, err := toPort(t.GetPort())
	if err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	out := &mesh.AppTunnel{Port: port}
	switch t.GetProtocol() {
	case ApplicationTunnel_NONE:
		out.Protocol = mesh.AppTunnelNone
	case ApplicationTunnel_PROXY:
		out.Protocol = mesh.AppTunnelPROXY
	default:
		return nil, fmt.Errorf("protocol: unknown value %d", t.GetProtocol())
	}
	return out, nil
}

func toMembership(key string, list *PortList) (mesh.Membership, error) {
	name, err := mesh.ParseServiceName(key)
	if err != nil {
		return mesh.Membership{}, err
	}
	ports, err := toPorts(list.GetPorts())
	return mesh.Membership{Service: name, Ports: ports}, err
}

// toPorts orders ports by number; of two with the same number the last counts.
func toPorts(in []*Port) ([]mesh.Port, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]mesh.Port, 0, len(in))
	for i, p := range in {
		service, err := toPort(p.GetServicePort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d].service_port: %w", i, err)
		}
		target, err := toPort(p.GetTargetPort())
		if err != nil {
			return nil, fmt.Errorf("ports[%d].target_port: %w", i, err)
		}
		out = append(out, mesh.Port{Service: service, Target: target, Protocol: toAppProtocol(p.GetAppProtocol())})
	}
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
	return slices.CompactFunc(out, func(a, b mesh.Port) bool { return a.Service == b.Service }), nil
}

func toPort(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("%d is no port", p)
	}
	return uint16(p), nil
}

// toAppProtocol takes an unknown number for an unknown protocol.
func toAppProtocol(p AppProtocol) mesh.AppProtocol {
	if p < AppProtocol_UNKNOWN || p > AppProtocol_TLS {
		return mesh.AppUnknown
	}
	return mesh.AppProtocol(p)
}
