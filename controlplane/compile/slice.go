package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// endpointSlice makes workloads of the addresses that a slice lists and that are no
// pods'. A pod that is listed is an endpoint by slicesOf.
func (c *compilation) endpointSlice(s *source.EndpointSlice) {
	service, m, ok := c.sliceMembership(s)
	if !ok {
		return
	}
	for _, e := range s.Endpoints {
		if e.Pod != "" && c.view.Get(source.Key{Kind: source.KindPod, Namespace: s.Namespace, Name: e.Pod}) != nil {
			continue
		}
		for _, text := range e.Addresses {
			addr, ok := source.ParseAddr(text)
			if !ok {
				c.partly(Accepted, reason.Unsupported, "endpoints", text+" is not an IP address")
				continue
			}
			c.out.Workloads = append(c.out.Workloads, c.sliceWorkload(s, service, e, addr, m))
		}
	}
}

// sliceWorkload is one address. Its identity is nobody's, and it is not found by
// its address, which may be a pod's or a node's after all.
func (c *compilation) sliceWorkload(s *source.EndpointSlice, service *source.Service, e source.Endpoint, addr netip.Addr, m mesh.Membership) *mesh.Workload {
	w := &mesh.Workload{
		UID:  mesh.UID(string(c.mesh.Cluster) + "/discovery.k8s.io/EndpointSlice/" + s.Namespace + "/" + s.Name + "/" + addr.String()),
		Name: s.Name + "/" + addr.String(), Namespace: s.Namespace, Addresses: []netip.Addr{addr},
		Network: c.mesh.Network, Cluster: c.mesh.Cluster, TrustDomain: c.mesh.TrustDomain, ServiceAccount: mesh.DefaultServiceAccount,
		Node: e.Node, WorkloadType: mesh.Pod, WorkloadName: service.Name, CanonicalName: service.Name, CanonicalRevision: "latest",
		NetworkMode: mesh.NetworkHost, Capacity: 1, Services: []mesh.Membership{m}, Locality: c.locality(e.Node),
	}
	if !e.Ready {
		w.Status = mesh.Unhealthy
	}
	w.Locality.Zone = cmp.Or(w.Locality.Zone, e.Zone)
	return w
}

// sliceMembership is what being listed in a slice means.
func (c *compilation) sliceMembership(s *source.EndpointSlice) (*source.Service, mesh.Membership, bool) {
	name := s.Labels[source.LabelService]
	if name == "" {
		return nil, mesh.Membership{}, false
	}
	service, ok := c.view.Get(source.Key{Kind: source.KindService, Namespace: s.Namespace, Name: name}).(*source.Service)
	if !ok || service.Type == "ExternalName" {
		return nil, mesh.Membership{}, false
	}
	m := mesh.Membership{Service: mesh.ServiceName{Namespace: s.Namespace, Hostname: c.mesh.hostname(s.Namespace, name)}}
	for _, p := range serviceFrontend(service).ports {
		target := uint16(0)
		for _, sp := range s.Ports {
			if sp.Name == p.Name && sp.Protocol == p.Protocol {
				target = uint16(cmp.Or(sp.Port, p.TargetPort, p.Port))
			}
		}
		m.Ports = append(m.Ports, mesh.Port{Service: uint16(p.Port), Target: target, Protocol: appProtocol(p)})
	}
	slices.SortFunc(m.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
	return service, m, true
}

// slicesOf makes a pod an endpoint of the services whose slices list it.
func (c *compilation) slicesOf(p *source.Pod) []mesh.Membership {
	var out []mesh.Membership
	for _, o := range c.view.List(source.KindEndpointSlice, p.Namespace, func(o source.Object) bool {
		s, ok := o.(*source.EndpointSlice)
		return ok && slices.ContainsFunc(s.Endpoints, func(e source.Endpoint) bool { return e.Pod == p.Name })
	}) {
		if _, m, ok := c.sliceMembership(o.(*source.EndpointSlice)); ok {
			out = append(out, m)
		}
	}
	return out
}
