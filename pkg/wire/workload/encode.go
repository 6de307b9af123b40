package workload

import (
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// FromWorkload converts a workload for the wire, leaving out what is a default.
func FromWorkload(w *mesh.Workload) *Workload {
	out := &Workload{
		Uid:               string(w.UID),
		Name:              w.Name,
		Namespace:         w.Namespace,
		Hostname:          w.Hostname,
		Network:           string(w.Network),
		TunnelProtocol:    TunnelProtocol(w.Protocol),
		TrustDomain:       unlessDefault(w.TrustDomain, mesh.DefaultTrustDomain),
		ServiceAccount:    unlessDefault(w.ServiceAccount, mesh.DefaultServiceAccount),
		Waypoint:          fromGateway(w.Waypoint),
		NetworkGateway:    fromGateway(w.NetworkGateway),
		Node:              w.Node,
		CanonicalName:     w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision,
		WorkloadType:      WorkloadType(w.WorkloadType),
		WorkloadName:      w.WorkloadName,
		NativeTunnel:      w.NativeTunnel,
		Status:            WorkloadStatus(w.Status),
		ClusterId:         unlessDefault(string(w.Cluster), string(mesh.DefaultCluster)),
		NetworkMode:       NetworkMode(w.NetworkMode),
	}
	for _, a := range w.Addresses {
		out.Addresses = append(out.Addresses, a.AsSlice())
	}
	if t := w.AppTunnel; t != nil {
		out.ApplicationTunnel = &ApplicationTunnel{Protocol: ApplicationTunnel_Protocol(t.Protocol), Port: uint32(t.Port)}
	}
	for _, m := range w.Services {
		if out.Services == nil {
			out.Services = make(map[string]*PortList, len(w.Services))
		}
		out.Services[m.Service.String()] = &PortList{Ports: fromPorts(m.Ports)}
	}
	for _, p := range w.Policies {
		out.AuthorizationPolicies = append(out.AuthorizationPolicies, p.String())
	}
	if l := w.Locality; l != (mesh.Locality{}) {
		out.Locality = &Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if w.Capacity != 1 {
		out.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	return out
}

// FromService converts a service for the wire.
func FromService(s *mesh.Service) *Service {
	out := &Service{
		Name:               s.Name,
		Namespace:          s.Namespace,
		Hostname:           s.Hostname,
		Ports:              fromPorts(s.Ports),
		SubjectAltNames:    s.SubjectAltNames,
		Waypoint:           fromGateway(s.Waypoint),
		IpFamilies:         IPFamilies(s.IPFamilies),
		Canonical:          s.Canonical,
		IngressUseWaypoint: s.IngressWaypoint,
	}
	if s.NamespaceOnly {
		out.Visibility = Service_NAMESPACE
	}
	for _, a := range s.VIPs {
		out.Addresses = append(out.Addresses, &NetworkAddress{Network: string(a.Network), Address: a.Addr.AsSlice()})
	}
	for _, c := range s.CIDRs {
		bits := uint32(c.Prefix.Bits())
		out.Addresses = append(out.Addresses, &NetworkAddress{
			Network: string(c.Network), Address: c.Prefix.Addr().AsSlice(), Length: &bits,
		})
	}
	for _, w := range s.WeightedWaypoints {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &WeightedWaypoint{
			Destination: fromGateway(&w.Gateway), Weight: w.Weight,
		})
	}
	out.LoadBalancing = fromLoadBalancing(s.LoadBalancing)
	return out
}

func fromLoadBalancing(l *mesh.LoadBalancing) *LoadBalancing {
	if l == nil {
		return nil
	}
	out := &LoadBalancing{}
	for _, p := range l.Preferences {
		out.RoutingPreference = append(out.RoutingPreference, LoadBalancing_Scope(p))
	}
	switch l.Mode {
	case mesh.BalanceStrict:
		out.Mode = LoadBalancing_STRICT
	case mesh.BalanceFailover:
		out.Mode = LoadBalancing_FAILOVER
	case mesh.BalancePassthrough:
		out.Mode = LoadBalancing_PASSTHROUGH
	}
	if l.AllowAll {
		out.HealthPolicy = LoadBalancing_ALLOW_ALL
	}
	return out
}

func fromGateway(g *mesh.Gateway) *GatewayAddress {
	if g == nil {
		return nil
	}
	out := &GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if g.ByAddress() {
		out.Destination = &GatewayAddress_Address{Address: &NetworkAddress{
			Network: string(g.Address.Network), Address: g.Address.Addr.AsSlice(),
		}}
		return out
	}
	out.Destination = &GatewayAddress_Hostname{Hostname: &NamespacedHostname{
		Namespace: g.Service.Namespace, Hostname: g.Service.Hostname,
	}}
	return out
}

func fromPorts(in []mesh.Port) []*Port {
	var out []*Port
	for _, p := range in {
		out = append(out, &Port{
			ServicePort: uint32(p.Service), TargetPort: uint32(p.Target), AppProtocol: AppProtocol(p.Protocol),
		})
	}
	return out
}

func unlessDefault(v, standard string) string {
	if v == standard {
		return ""
	}
	return v
}
