package compile

import (
	"cmp"
	"fmt"
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
	f := serviceFrontend(s)
	out.Ports = servicePorts(f)
	out.IPFamilies = families(s)
	out.LoadBalancing = c.balancing(s)
	visible := c.visibility(s, strings.Split(s.Annotations[AnnotationExportTo], ","), out)
	c.notes(s)
	if !visible {
		return
	}
	c.bind(c.attachments(f), out)
	c.out.Services = append(c.out.Services, out)
}

// notes says which settings of a service have no effect in a mesh.
func (c *compilation) notes(s *source.Service) {
	if s.SessionAffinity != "" && s.SessionAffinity != "None" {
		c.partly(Accepted, reason.Unsupported, "spec.sessionAffinity", "clients in the mesh are not kept to one endpoint")
	}
	if len(s.Ports) > 0 && !slices.ContainsFunc(s.Ports, func(p source.ServicePort) bool { return p.Protocol == "TCP" }) {
		c.partly(Accepted, reason.Unsupported, "spec.ports", "no port is TCP: the traffic passes by the mesh")
	}
}

// visibility says who may see a service, as exportTo lists it; false is nobody.
// What names namespaces one by one is seen by everybody: there is no such thing on
// the wire.
func (c *compilation) visibility(o source.Object, exportTo []string, out *mesh.Service) bool {
	for i, to := range exportTo {
		switch to = strings.TrimSpace(to); {
		case to == "~":
			return len(exportTo) > 1
		case to == "." || to == o.Metadata().Namespace:
			out.NamespaceOnly = len(exportTo) == 1
		case to != "" && to != "*":
			field := fmt.Sprintf("spec.exportTo[%d]", i)
			if o.Key().Kind == source.KindService {
				field = `metadata.annotations["` + AnnotationExportTo + `"]`
			}
			c.partly(Accepted, reason.Unsupported, field, "only \".\", \"*\" and \"~\" are supported: every namespace sees the service")
		}
	}
	return true
}

func servicePorts(f frontend) []mesh.Port {
	var out []mesh.Port
	for _, p := range f.ports {
		out = append(out, mesh.Port{Service: uint16(p.Port), Target: defaultTarget(p), Protocol: appProtocol(p)})
	}
	slices.SortFunc(out, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
	return out
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
	if s.InternalLocal {
		lb.Mode, lb.Preferences = mesh.BalanceStrict, []mesh.LocalityScope{mesh.ScopeNode}
		return lb
	}
	return c.near(s, s.TrafficDistribution, lb)
}

// near adds which endpoints near the client are preferred; nil = all alike.
func (c *compilation) near(o source.Object, spec string, lb *mesh.LoadBalancing) *mesh.LoadBalancing {
	near := []mesh.LocalityScope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone}
	switch d := c.distribution(o.Metadata(), spec); d {
	case "PreferClose", "PreferSameZone":
		lb.Mode, lb.Preferences = mesh.BalanceFailover, near
	case "PreferSameNode":
		lb.Mode, lb.Preferences = mesh.BalanceFailover, append(near, mesh.ScopeSubzone, mesh.ScopeNode)
	case "", "Any":
	default:
		c.partly(Accepted, reason.Unsupported, "spec.trafficDistribution", fmt.Sprintf("%q is not known: all endpoints are alike", d))
	}
	if lb.Mode == mesh.BalanceStandard && !lb.AllowAll {
		return nil
	}
	return lb
}

// distribution is the annotation of the object, or of its namespace, or else what
// its field says.
func (c *compilation) distribution(m *source.Meta, spec string) string {
	if v, ok := m.Annotations[AnnotationTraffic]; ok {
		return v
	}
	ns, ok := c.view.Get(source.Key{Kind: source.KindNamespace, Name: m.Namespace}).(*source.Namespace)
	if ok && ns.Annotations[AnnotationTraffic] != "" {
		return ns.Annotations[AnnotationTraffic]
	}
	return spec
}
