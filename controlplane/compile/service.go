package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// service compiles a Service. An ExternalName is an alias of DNS and not sent.
func (c *compilation) service(s *source.Service) {
	if s.Type == "ExternalName" {
		return
	}
	out := &mesh.Service{
		Name:      s.Name,
		Namespace: s.Namespace,
		Hostname:  c.mesh.hostname(s.Namespace, s.Name),
		Canonical: true,
	}
	for _, ip := range s.ClusterIPs {
		if a, ok := source.ParseAddr(ip); ok {
			out.VIPs = append(out.VIPs, mesh.NetAddr{Network: c.mesh.Network, Addr: a})
		}
	}
	for _, p := range s.Ports {
		if p.Protocol == "TCP" {
			out.Ports = append(out.Ports, mesh.Port{Service: uint16(p.Port), Target: defaultTarget(p), Protocol: appProtocol(p)})
		}
	}
	slices.SortFunc(out.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
	out.IPFamilies = families(s)
	out.LoadBalancing = c.balancing(s)
	c.bind(s, out)
	c.out.Service = out
}

// bind takes the service's traffic through its waypoint. While that has no address,
// or is not there at all, the traffic goes directly, unless policies are to be
// enforced there: then clients are pointed at it anyway, and refused until it comes.
func (c *compilation) bind(s *source.Service, out *mesh.Service) {
	wp, chosen := c.serviceWaypoint(s)
	policies := c.servicePolicies(s)
	if wp != nil {
		policies = append(policies, c.gatewayPolicies(wp.object)...)
	}
	switch {
	case chosen.Name == "":
	case len(out.VIPs) == 0 && wp != nil:
		c.bad(WaypointBound, reason.Unsupported, "spec.clusterIP", "a headless service has no address of its own: its pods are dialled directly, not through the waypoint")
	case wp != nil && wp.gateway != nil:
		out.Waypoint = wp.gateway
		c.serviceServing(s, out, wp)
	case len(policies) > 0:
		out.Waypoint = &mesh.Gateway{Service: mesh.ServiceName{Namespace: chosen.Namespace, Hostname: c.mesh.hostname(chosen.Namespace, chosen.Name)}, HBONEPort: mesh.PortHBONE}
		c.bad(WaypointBound, reason.NoWaypoint, useWaypointField, "clients are refused until the waypoint serves it, because it enforces policies")
	}
}

// defaultTarget is the target port where no pod resolves it; 0 for a named one.
func defaultTarget(p source.ServicePort) uint16 {
	if p.TargetName != "" {
		return 0
	}
	return uint16(cmp.Or(p.TargetPort, p.Port))
}

// appProtocol is what the port's appProtocol says, or else its name's prefix.
func appProtocol(p source.ServicePort) mesh.AppProtocol {
	name, _, _ := strings.Cut(p.Name, "-")
	switch strings.ToLower(cmp.Or(p.AppProtocol, name)) {
	case "http", "http1", "kubernetes.io/ws":
		return mesh.AppHTTP11
	case "http2", "h2c", "kubernetes.io/h2c":
		return mesh.AppHTTP2
	case "grpc", "grpc-web":
		return mesh.AppGRPC
	case "https", "tls", "kubernetes.io/wss":
		return mesh.AppTLS
	case "tcp", "mysql", "mongo", "redis":
		return mesh.AppTCP
	}
	return mesh.AppUnknown
}

func families(s *source.Service) mesh.IPFamilies {
	v4, v6 := slices.Contains(s.IPFamilies, "IPv4"), slices.Contains(s.IPFamilies, "IPv6")
	switch {
	case v4 && v6:
		return mesh.IPDual
	case v4:
		return mesh.IPv4Only
	case v6:
		return mesh.IPv6Only
	}
	return mesh.IPAutomatic
}

// balancing says how the service's endpoints are chosen; nil = all alike.
func (c *compilation) balancing(s *source.Service) *mesh.LoadBalancing {
	lb := &mesh.LoadBalancing{AllowAll: s.PublishNotReady}
	near := []mesh.LocalityScope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	switch c.distribution(s) {
	case "PreferClose", "PreferSameZone":
		lb.Mode, lb.Preferences = mesh.BalanceFailover, near
	case "PreferSameNode":
		lb.Mode, lb.Preferences = mesh.BalanceFailover, append(near, mesh.ScopeSubzone, mesh.ScopeNode)
	}
	if s.InternalLocal {
		lb.Mode, lb.Preferences = mesh.BalanceStrict, []mesh.LocalityScope{mesh.ScopeNode}
	}
	if lb.Mode == mesh.BalanceStandard && !lb.AllowAll {
		return nil
	}
	return lb
}

// distribution is the annotation of the service, or of its namespace, or else
// the field.
func (c *compilation) distribution(s *source.Service) string {
	if v, ok := s.Annotations[AnnotationTraffic]; ok {
		return v
	}
	ns, ok := c.view.Get(source.Key{Kind: source.KindNamespace, Name: s.Namespace}).(*source.Namespace)
	if ok && ns.Annotations[AnnotationTraffic] != "" {
		return ns.Annotations[AnnotationTraffic]
	}
	return s.TrafficDistribution
}
