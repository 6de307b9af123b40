package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// serviceEntry compiles a ServiceEntry: a service for each host, and a workload for
// each endpoint that it lists, or for each host that is to be looked up.
func (c *compilation) serviceEntry(e *source.ServiceEntry) {
	if len(Validate(e)) > 0 {
		return // the first version was bad
	}
	f := entryFrontend(e)
	hosts := c.hosts(e)
	a := c.attachments(f)
	for _, h := range hosts {
		if out := c.entryService(e, f, h); out != nil {
			c.bindEntry(a, e, out)
			c.out.Services = append(c.out.Services, out)
		}
	}
	if len(c.out.Services) > 0 {
		c.entryEndpoints(e, f, hosts)
		c.applied(e)
	}
	c.settled(Accepted)
}

// applied says who sees an entry that limits it.
func (c *compilation) applied(e *source.ServiceEntry) {
	if len(e.Spec.GetExportTo()) == 0 {
		return
	}
	code, message := "Public", "every namespace sees it"
	if namespaceOnly(e) {
		code, message = "Namespace", "only namespace "+e.Namespace+" sees it"
	}
	c.said(VisibilityApplied, message)
	c.out.Conditions[len(c.out.Conditions)-1].Code = code
}

// entryHost is a host that an entry has.
type entryHost struct {
	name      string
	canonical bool // the entry is whom clients of other namespaces mean by it
}

// hosts returns the hosts that the entry has for itself. Of several objects of one
// namespace that name a host one has it: a Service, or else the oldest entry.
func (c *compilation) hosts(e *source.ServiceEntry) []entryHost {
	rivals := c.view.List(source.KindServiceEntry, "", func(o source.Object) bool {
		r, ok := o.(*source.ServiceEntry)
		return ok && r.Key() != e.Key() && slices.ContainsFunc(r.Spec.GetHosts(), func(h string) bool { return slices.Contains(e.Spec.GetHosts(), h) })
	})
	var out []entryHost
	for i, name := range e.Spec.GetHosts() {
		field := fmt.Sprintf("spec.hosts[%d]", i)
		owner := c.ownerOf(name)
		if owner != nil && owner.Namespace == e.Namespace {
			c.partly(Accepted, reason.Conflict, field, fmt.Sprintf("the host is that of service %s/%s", owner.Namespace, owner.Name))
			continue
		}
		h := entryHost{name: name, canonical: owner == nil}
		taken := false
		for _, o := range rivals {
			r := o.(*source.ServiceEntry)
			if !slices.Contains(r.Spec.GetHosts(), name) || !r.Older(&e.Meta) {
				continue
			}
			h.canonical = h.canonical && namespaceOnly(r)
			if r.Namespace == e.Namespace {
				taken = true
				c.partly(Accepted, reason.Conflict, field, fmt.Sprintf("the host is that of the older entry %s/%s", r.Namespace, r.Name))
			}
		}
		if !taken && !slices.ContainsFunc(out, func(o entryHost) bool { return o.name == name }) {
			out = append(out, h)
		}
	}
	return out
}

func namespaceOnly(e *source.ServiceEntry) bool {
	to := e.Spec.GetExportTo()
	return len(to) == 1 && (to[0] == "." || to[0] == "~" || to[0] == e.Namespace)
}

// ownerOf returns the Service whose hostname that is, or nil.
func (c *compilation) ownerOf(host string) *source.Service {
	name, namespace, ok := c.mesh.serviceOf(host)
	if !ok {
		return nil
	}
	s, _ := c.view.Get(source.Key{Kind: source.KindService, Namespace: namespace, Name: name}).(*source.Service)
	return s
}

// entryService is one host as a service, nil when it cannot be one.
func (c *compilation) entryService(e *source.ServiceEntry, f frontend, h entryHost) *mesh.Service {
	resolution := e.Spec.GetResolution()
	if strings.HasPrefix(h.name, "*") && lookedUp(e) {
		c.coded(WaypointMissing, "NoWaypointForWildcardService", reason.Unsupported, "spec.hosts", fmt.Sprintf("%s: which host is meant is known to a waypoint only, and ours do not look hosts up", h.name))
		return nil
	}
	out := &mesh.Service{Name: e.Name, Namespace: e.Namespace, Hostname: h.name, Canonical: h.canonical, SubjectAltNames: e.Spec.GetSubjectAltNames()}
	if !c.visibility(e, e.Spec.GetExportTo(), out) {
		return nil
	}
	out.Ports = servicePorts(f)
	c.addresses(e, h.name, out)
	out.LoadBalancing = c.near(e, "", &mesh.LoadBalancing{})
	if resolution == networking.ServiceEntry_NONE {
		out.LoadBalancing = &mesh.LoadBalancing{Mode: mesh.BalancePassthrough, AllowAll: true}
	}
	return out
}

// lookedUp reports whether clients are to look up the entry's hosts.
func lookedUp(e *source.ServiceEntry) bool {
	switch e.Spec.GetResolution() {
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN, networking.ServiceEntry_DYNAMIC_DNS:
		return len(e.Spec.GetEndpoints()) == 0 && e.Spec.GetWorkloadSelector() == nil
	}
	return false
}

// addresses gives the service the entry's addresses, or else those that were
// allocated to the host.
func (c *compilation) addresses(e *source.ServiceEntry, host string, out *mesh.Service) {
	for _, s := range e.Spec.GetAddresses() {
		p, err := parsePrefix(s)
		switch {
		case err != nil: // Validate has said so
		case p.IsSingleIP():
			out.VIPs = append(out.VIPs, mesh.NetAddr{Network: c.mesh.Network, Addr: p.Addr()})
		default:
			out.CIDRs = append(out.CIDRs, mesh.NetPrefix{Network: c.mesh.Network, Prefix: p.Masked()})
		}
	}
	if !allocates(e) || strings.HasPrefix(host, "*") {
		return
	}
	for _, addr := range c.allocated(e, host) {
		out.VIPs = append(out.VIPs, mesh.NetAddr{Network: c.mesh.Network, Addr: addr})
		c.out.Addresses = append(c.out.Addresses, source.HostAddress{Host: host, Value: addr.String()})
	}
}

// bindEntry is bind for what a waypoint can reach. It does not know where clients
// of an entry without endpoints were going; those go there directly, unless
// policies are to be enforced on the way.
func (c *compilation) bindEntry(a *attachments, e *source.ServiceEntry, out *mesh.Service) {
	if e.Spec.GetResolution() == networking.ServiceEntry_NONE && a.waypoint != nil && len(a.policies) == 0 {
		c.retract(WaypointBound)
		c.bad(WaypointBound, reason.Unsupported, "spec.resolution", "NONE: a waypoint does not know where clients are going; they go there directly")
		return
	}
	c.bind(a, out)
}

// entryEndpoints makes workloads of the endpoints.
func (c *compilation) entryEndpoints(e *source.ServiceEntry, f frontend, hosts []entryHost) {
	prefix := string(c.mesh.Cluster) + "/networking.istio.io/ServiceEntry/" + e.Namespace + "/" + e.Name + "/"
	if e.Spec.GetResolution() == networking.ServiceEntry_NONE {
		return
	}
	if lookedUp(e) {
		for _, s := range c.out.Services {
			ep := &networking.WorkloadEntry{Address: s.Hostname}
			w := c.entryWorkload(e.Name, e.Namespace, ep)
			w.UID = mesh.UID(prefix + s.Hostname)
			w.Services = []mesh.Membership{entryMembership(s.Key(), f, ep.GetPorts())}
			c.out.Workloads = append(c.out.Workloads, w)
		}
		return
	}
	seen := map[string]int{}
	for i, ep := range e.Spec.GetEndpoints() {
		w := c.entryWorkload(e.Name, e.Namespace, ep)
		if len(w.Addresses) == 0 && w.Hostname == "" {
			c.partly(Accepted, reason.Unsupported, fmt.Sprintf("spec.endpoints[%d].address", i), fmt.Sprintf("%q is neither an IP address nor a host", ep.GetAddress()))
			continue
		}
		w.UID = mesh.UID(prefix + ep.GetAddress())
		if n := seen[ep.GetAddress()]; n > 0 {
			w.UID += mesh.UID(fmt.Sprintf("/%d", n))
		}
		seen[ep.GetAddress()]++
		for _, s := range c.out.Services {
			w.Services = append(w.Services, entryMembership(s.Key(), f, ep.GetPorts()))
		}
		sortMemberships(w.Services)
		c.out.Workloads = append(c.out.Workloads, w)
	}
	if len(c.out.Workloads) == 0 && e.Spec.GetWorkloadSelector() == nil {
		c.partly(Accepted, reason.MissingField, "spec.endpoints", "it has no endpoints: nothing answers")
	}
}

// entryMembership makes a workload an endpoint of an entry's host. ports are the
// workload's own, by name.
func entryMembership(s mesh.ServiceName, f frontend, ports map[string]uint32) mesh.Membership {
	m := mesh.Membership{Service: s}
	for _, p := range f.ports {
		target := uint16(cmp.Or(p.TargetPort, p.Port))
		if own, ok := ports[p.Name]; ok {
			target = uint16(own)
		}
		m.Ports = append(m.Ports, mesh.Port{Service: uint16(p.Port), Target: target, Protocol: appProtocol(p)})
	}
	slices.SortFunc(m.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Service, b.Service) })
	return m
}

func sortMemberships(list []mesh.Membership) {
	slices.SortFunc(list, func(a, b mesh.Membership) int { return cmp.Compare(a.Service.String(), b.Service.String()) })
}

// entryWorkload is what an endpoint says about itself. It is outside of the mesh
// unless it says that it speaks HBONE.
func (c *compilation) entryWorkload(name, namespace string, ep *networking.WorkloadEntry) *mesh.Workload {
	w := &mesh.Workload{
		Name: name, Namespace: namespace, Cluster: c.mesh.Cluster, Network: c.mesh.Network,
		TrustDomain: c.mesh.TrustDomain, ServiceAccount: cmp.Or(ep.GetServiceAccount(), mesh.DefaultServiceAccount),
		WorkloadType: mesh.Pod, WorkloadName: name, Capacity: cmp.Or(ep.GetWeight(), 1), Locality: locality(ep.GetLocality()),
	}
	labels := ep.GetLabels()
	w.CanonicalName, w.CanonicalRevision = canonical(labels, name)
	if n := cmp.Or(ep.GetNetwork(), labels[LabelNetwork]); n != "" {
		w.Network = mesh.Network(n)
	}
	if labels[LabelTunnelProtocol] == "http" {
		w.Protocol = mesh.HBONE
	}
	if a, ok := source.ParseAddr(ep.GetAddress()); ok {
		w.Addresses = []netip.Addr{a}
	} else if !strings.Contains(ep.GetAddress(), "/") {
		w.Hostname = ep.GetAddress()
	}
	return w
}

// locality parses region/zone/subzone.
func locality(s string) mesh.Locality {
	parts := append(strings.SplitN(s, "/", 3), "", "", "")
	return mesh.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
}

// workloadEntry compiles a WorkloadEntry: a workload that labels select as they
// select pods.
func (c *compilation) workloadEntry(e *source.WorkloadEntry) {
	if len(Validate(e)) > 0 {
		return
	}
	w := c.entryWorkload(e.Name, e.Namespace, e.Spec)
	if len(w.Addresses) == 0 && w.Hostname == "" {
		c.bad(Accepted, reason.Unsupported, "spec.address", fmt.Sprintf("%q is neither an IP address nor a host", e.Spec.GetAddress()))
		return
	}
	w.UID = mesh.UID(string(c.mesh.Cluster) + "/networking.istio.io/WorkloadEntry/" + e.Namespace + "/" + e.Name)
	p := asPod(e)
	services := c.servicesOf(p)
	w.Services = c.memberships(p, services)
	waypoint := c.entryWaypoint(p)
	if waypoint != nil {
		w.Waypoint = waypoint.gateway
		c.podServing(w, waypoint)
	}
	w.Policies = c.policiesOf(p, services, waypoint)
	c.out.Workloads = append(c.out.Workloads, w)
	c.settled(Accepted)
}

// entryWaypoint is podWaypoint for a WorkloadEntry, whose status says that it has one.
func (c *compilation) entryWaypoint(p *source.Pod) *waypoint {
	wp := c.podWaypoint(p)
	if wp != nil {
		c.said(WaypointBound, fmt.Sprintf("attached to waypoint %s/%s", wp.object.Namespace, wp.object.Name))
	}
	return wp
}

// asPod is an entry as selectors see it.
func asPod(e *source.WorkloadEntry) *source.Pod {
	p := &source.Pod{Meta: e.Meta, ServiceAccount: e.Spec.GetServiceAccount()}
	p.Labels = map[string]string{}
	for _, labels := range []map[string]string{e.Labels, e.Spec.GetLabels()} {
		for k, v := range labels {
			p.Labels[k] = v
		}
	}
	for name, port := range e.Spec.GetPorts() {
		p.Ports = append(p.Ports, source.ContainerPort{Name: name, Port: int32(port), Protocol: "TCP"})
	}
	slices.SortFunc(p.Ports, func(a, b source.ContainerPort) int { return cmp.Compare(a.Name, b.Name) })
	return p
}

// entriesOf makes a pod an endpoint of the ServiceEntries whose workloadSelector it
// matches.
func (c *compilation) entriesOf(p *source.Pod) []mesh.Membership {
	ports := map[string]uint32{}
	for _, port := range p.Ports {
		ports[port.Name] = uint32(port.Port)
	}
	var out []mesh.Membership
	for _, o := range c.view.List(source.KindServiceEntry, p.Namespace, func(o source.Object) bool {
		e, ok := o.(*source.ServiceEntry)
		return ok && len(e.Spec.GetWorkloadSelector().GetLabels()) > 0 && selects(e.Spec.GetWorkloadSelector().GetLabels(), p.Labels)
	}) {
		e := o.(*source.ServiceEntry)
		for _, h := range e.Spec.GetHosts() {
			out = append(out, entryMembership(mesh.ServiceName{Namespace: e.Namespace, Hostname: h}, entryFrontend(e), ports))
		}
	}
	return out
}

// byHostname returns the frontend that has a hostname, as a client of namespace
// would find it: a Service, else a ServiceEntry of that namespace, else the oldest.
func (c *compilation) byHostname(host, namespace string) (frontend, bool) {
	if s := c.ownerOf(host); s != nil && s.Type != "ExternalName" {
		return serviceFrontend(s), true
	}
	var best *source.ServiceEntry
	for _, o := range c.view.List(source.KindServiceEntry, "", func(o source.Object) bool {
		e, ok := o.(*source.ServiceEntry)
		return ok && slices.Contains(e.Spec.GetHosts(), host)
	}) {
		e := o.(*source.ServiceEntry)
		if best == nil || boolCompare(e.Namespace == namespace, best.Namespace == namespace) < 0 ||
			(e.Namespace == namespace) == (best.Namespace == namespace) && e.Older(&best.Meta) {
			best = e
		}
	}
	if best == nil {
		return frontend{}, false
	}
	return entryFrontend(best), true
}
