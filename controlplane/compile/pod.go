package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
)

// pod compiles a Pod that has an address and has not ended.
func (c *compilation) pod(p *source.Pod) {
	addrs := addresses(p.IPs)
	if len(addrs) == 0 || p.Phase == "Succeeded" || p.Phase == "Failed" {
		return
	}
	w := &mesh.Workload{
		UID:            mesh.UID(string(c.mesh.Cluster) + "//Pod/" + p.Namespace + "/" + p.Name),
		Name:           p.Name,
		Namespace:      p.Namespace,
		Addresses:      addrs,
		Network:        c.mesh.Network,
		Cluster:        c.mesh.Cluster,
		TrustDomain:    c.mesh.TrustDomain,
		ServiceAccount: p.ServiceAccount,
		Node:           p.Node,
		WorkloadType:   mesh.Pod,
		Capacity:       1,
	}
	if n, ok := p.Labels[LabelNetwork]; ok {
		w.Network = mesh.Network(n)
	}
	w.Protocol, w.NativeTunnel = tunnel(p)
	if !p.Ready || p.Terminating {
		w.Status = mesh.Unhealthy
	}
	if p.HostNetwork {
		w.NetworkMode = mesh.NetworkHost
	}
	w.WorkloadName = ownerName(p)
	w.CanonicalName, w.CanonicalRevision = canonical(p.Labels, w.WorkloadName)
	w.Locality = c.locality(p.Node)
	services := c.servicesOf(p)
	w.Services = c.memberships(p, services)
	waypoint := c.podWaypoint(p)
	if waypoint != nil {
		w.Waypoint = waypoint.gateway
		c.podServing(w, waypoint)
	}
	w.Policies = c.policiesOf(p, services, waypoint)
	c.out.Workloads = append(c.out.Workloads, w)
}

func addresses(ips []string) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := source.ParseAddr(ip); ok {
			out = append(out, a)
		}
	}
	return out
}

// tunnel says how the pod is reached: through its node's ztunnel once the node
// agent has redirected it, through itself when it is a waypoint.
func tunnel(p *source.Pod) (protocol mesh.TunnelProtocol, native bool) {
	if p.HostNetwork {
		return mesh.TCP, false
	}
	if p.Annotations[AnnotationRedirection] == "enabled" {
		return mesh.HBONE, false
	}
	if p.Labels[LabelTunnelProtocol] == "http" {
		return mesh.HBONE, true
	}
	return mesh.TCP, false
}

// ownerName is the name of what a person deployed: the Deployment rather than
// its ReplicaSet, the CronJob rather than its Job.
func ownerName(p *source.Pod) string {
	switch p.Owner.Kind {
	case "":
		return p.Name
	case "ReplicaSet":
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(p.Owner.Name, "-"+hash)
		}
	case "Job":
		if i := strings.LastIndexByte(p.Owner.Name, '-'); i > 0 && isScheduled(p.Owner.Name[i+1:]) {
			return p.Owner.Name[:i]
		}
	}
	return p.Owner.Name
}

// isScheduled reports whether s is the time that a CronJob puts in its Job's name.
func isScheduled(s string) bool {
	return len(s) >= 8 && strings.Trim(s, "0123456789") == ""
}

func canonical(labels map[string]string, workload string) (name, revision string) {
	name = cmp.Or(labels["service.istio.io/canonical-name"], labels["app.kubernetes.io/name"], labels["app"], workload)
	revision = cmp.Or(labels["service.istio.io/canonical-revision"], labels["app.kubernetes.io/version"], labels["version"], "latest")
	return name, revision
}

func (c *compilation) locality(node string) mesh.Locality {
	n, ok := c.view.Get(source.Key{Kind: source.KindNode, Name: node}).(*source.Node)
	if !ok {
		return mesh.Locality{}
	}
	return mesh.Locality{
		Region:  n.Labels["topology.kubernetes.io/region"],
		Zone:    n.Labels["topology.kubernetes.io/zone"],
		Subzone: n.Labels["topology.istio.io/subzone"],
	}
}

// servicesOf returns the Services that select the pod.
func (c *compilation) servicesOf(p *source.Pod) []*source.Service {
	list := c.view.List(source.KindService, p.Namespace, func(o source.Object) bool {
		s, ok := o.(*source.Service)
		return ok && s.Type != "ExternalName" && len(s.Selector) > 0 && selects(s.Selector, p.Labels)
	})
	out := make([]*source.Service, len(list))
	for i, o := range list {
		out[i] = o.(*source.Service)
	}
	return out
}

// memberships returns what the pod is an endpoint of: the services that select it,
// and what lists it otherwise.
func (c *compilation) memberships(p *source.Pod, services []*source.Service) []mesh.Membership {
	var out []mesh.Membership
	for _, s := range services {
		m := mesh.Membership{Service: mesh.ServiceName{Namespace: s.Namespace, Hostname: c.mesh.hostname(s.Namespace, s.Name)}}
		for _, port := range s.Ports {
			if port.Protocol != "TCP" {
				continue
			}
			m.Ports = append(m.Ports, mesh.Port{Service: uint16(port.Port), Target: targetPort(p, port), Protocol: appProtocol(port)})
		}
		slices.SortFunc(m.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
		out = append(out, m)
	}
	for _, m := range append(c.slicesOf(p), c.entriesOf(p)...) {
		if !slices.ContainsFunc(out, func(o mesh.Membership) bool { return o.Service == m.Service }) {
			out = append(out, m)
		}
	}
	sortMemberships(out)
	return out
}

// targetPort resolves a service's port for one pod; 0 when the pod names no such
// port.
func targetPort(p *source.Pod, port source.ServicePort) uint16 {
	if port.TargetName == "" {
		return uint16(cmp.Or(port.TargetPort, port.Port))
	}
	for _, cp := range p.Ports {
		if cp.Name == port.TargetName && cp.Protocol == port.Protocol {
			return uint16(cp.Port)
		}
	}
	return 0
}

// podServing tells the waypoint about a workload that clients address directly.
func (c *compilation) podServing(w *mesh.Workload, wp *waypoint) {
	pb := &waypointpb.Workload{Uid: string(w.UID)}
	for _, a := range w.Addresses {
		pb.Addresses = append(pb.Addresses, &waypointpb.NetworkAddress{Network: string(w.Network), Address: a.AsSlice()})
	}
	pb.HttpFilters, pb.NetworkFilters = c.filters(c.gatewayPolicies(wp.object))
	c.out.Serving = append(c.out.Serving, Serving{
		Gateway:     wp.name(),
		Name:        string(w.UID),
		Destination: &waypointpb.Destination{Kind: &waypointpb.Destination_Workload{Workload: pb}},
	})
}
