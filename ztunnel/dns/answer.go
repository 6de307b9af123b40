package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// Find decides what the mesh answers to a question of one of its workloads.
//
//	A, AAAA  virtual addresses in the client's network; the endpoints of a headless
//	         service; one endpoint by its name below a service
//	SRV      all ports of a Kubernetes service, or one by its number: the names of
//	         ports are not in the workload API, so a query with one is not ours
//	PTR      the service of a virtual address; the names of an endpoint below its services
//	ANY      as A and AAAA together (RFC 8482)
//
// Every other type is for somebody else, and so is a name that nobody in the mesh
// has.
func Find(view workloads.View, zone Zone, client *mesh.Workload, q Question) Answer {
	f := finder{view: view, zone: zone, domain: zone.domain(), client: client}
	name := plain(q.Name)
	if strings.Contains(name, `\`) { // a label holds what no hostname does
		return Answer{}
	}
	switch q.Type {
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY:
		return f.addresses(name, q.Type)
	case dns.TypeSRV:
		return f.ports(name)
	case dns.TypePTR:
		return f.pointer(name)
	}
	return Answer{}
}

type finder struct {
	view   workloads.View
	zone   Zone
	domain string
	client *mesh.Workload
}

func (f *finder) addresses(name string, qtype uint16) Answer {
	for s := range spellings(name, f.client.Namespace, f.domain) {
		svc, pods, wildcard := f.match(s.name)
		if svc == nil {
			continue
		}
		a := Answer{Known: true, Service: svc.Key()}
		if !wildcard {
			a.Alias = s.stripped
		}
		switch {
		case pods != nil:
			a.Addrs = f.filter(qtype, pods)
		case len(svc.VIPs) == 0:
			a.Addrs = f.headless(svc, qtype)
		default:
			a.Addrs = f.virtual(svc, qtype)
		}
		return a
	}
	return Answer{}
}

// match finds the service that has the name, or the endpoint below one, or the
// wildcard that covers it.
func (f *finder) match(name string) (svc *mesh.Service, pod *mesh.Workload, wildcard bool) {
	if svc = f.service(name); svc != nil {
		return svc, nil, false
	}
	if svc, pod = f.endpoint(name); svc != nil {
		return svc, pod, false
	}
	for host := range wildcards(name) {
		if svc = f.service(host); svc != nil {
			return svc, nil, true
		}
	}
	return nil, nil, false
}

// service returns the one that the client means by a hostname: its own
// namespace's, else the canonical one, else the preferred namespace's, else the
// oldest. One without virtual addresses counts only if it is Kubernetes's.
func (f *finder) service(host string) (best *mesh.Service) {
	rank := -1
	for _, s := range f.view.ServicesByHost(host) {
		if !f.visible(s) || len(s.VIPs) == 0 && !f.kubernetes(s.Hostname) {
			continue
		}
		r := 0
		switch {
		case s.Namespace == f.client.Namespace:
			r = 3
		case s.Canonical:
			r = 2
		case f.zone.Preferred != "" && s.Namespace == f.zone.Preferred:
			r = 1
		}
		if r > rank {
			best, rank = s, r
		}
	}
	return best
}

func (f *finder) visible(s *mesh.Service) bool {
	return !s.NamespaceOnly || s.Namespace == f.client.Namespace
}

// kubernetes reports whether a hostname is that of a Kubernetes service.
func (f *finder) kubernetes(host string) bool {
	rest, ok := strings.CutSuffix(host, f.domain)
	return ok && strings.HasSuffix(rest, ".svc.")
}

// endpoint finds the pod that a name below a Kubernetes service means: by the
// pod's own name, which is that of a StatefulSet's pods, or by its address.
func (f *finder) endpoint(name string) (*mesh.Service, *mesh.Workload) {
	label, host, ok := strings.Cut(name, ".")
	if !ok || !f.kubernetes(host) {
		return nil, nil
	}
	svc := f.service(host)
	if svc == nil {
		return nil, nil
	}
	for _, e := range f.view.Endpoints(svc.Key()) {
		if f.serves(svc, e.Workload) && named(e.Workload, label) {
			return svc, e.Workload
		}
	}
	return nil, nil
}

func named(w *mesh.Workload, label string) bool {
	if strings.EqualFold(w.Name, label) {
		return true
	}
	for _, a := range w.Addresses {
		if dashed(a) == label {
			return true
		}
	}
	return false
}

// serves reports whether an endpoint is shown to the client.
func (f *finder) serves(svc *mesh.Service, w *mesh.Workload) bool {
	all := svc.LoadBalancing != nil && svc.LoadBalancing.AllowAll
	return w.Network == f.client.Network && len(w.Addresses) > 0 && (all || w.Status == mesh.Healthy)
}

func (f *finder) virtual(svc *mesh.Service, qtype uint16) (out []netip.Addr) {
	for _, v := range svc.VIPs {
		if v.Network == f.client.Network && wants(qtype, v.Addr) {
			out = append(out, v.Addr)
		}
	}
	return out
}

// headless returns one address of each endpoint and family.
func (f *finder) headless(svc *mesh.Service, qtype uint16) (out []netip.Addr) {
	for _, e := range f.view.Endpoints(svc.Key()) {
		if f.serves(svc, e.Workload) {
			out = append(out, f.filter(qtype, e.Workload)...)
		}
	}
	return out
}

// filter returns the first address of each family that is asked for.
func (f *finder) filter(qtype uint16, w *mesh.Workload) (out []netip.Addr) {
	var four, six bool
	for _, a := range w.Addresses {
		seen := &six
		if a.Is4() {
			seen = &four
		}
		if !*seen && wants(qtype, a) {
			*seen = true
			out = append(out, a)
		}
	}
	return out
}

// ports answers SRV. Other hostnames than Kubernetes's may have real records.
func (f *finder) ports(name string) Answer {
	name, port, ok := portOf(name)
	if !ok {
		return Answer{}
	}
	for s := range spellings(name, f.client.Namespace, f.domain) {
		if s.stripped != "" {
			return Answer{}
		}
		svc := f.service(s.name)
		if svc == nil || !f.kubernetes(svc.Hostname) {
			continue
		}
		a := Answer{Known: true, Service: svc.Key()}
		for _, p := range svc.Ports {
			if port == 0 || p.Service == port {
				a.Targets = f.targets(a.Targets, svc, p)
			}
		}
		if port != 0 && len(a.Targets) == 0 {
			return Answer{} // it may be a port's name after all
		}
		return a
	}
	return Answer{}
}

// targets appends who serves one port of a service.
func (f *finder) targets(list []Target, svc *mesh.Service, p mesh.Port) []Target {
	if len(svc.VIPs) > 0 {
		return append(list, Target{svc.Hostname, p.Service, f.virtual(svc, dns.TypeANY)})
	}
	for _, e := range f.view.Endpoints(svc.Key()) {
		port := targetPort(e.Ports, p)
		if f.serves(svc, e.Workload) && port != 0 {
			list = append(list, Target{label(e.Workload, e.Workload.Addresses[0]) + "." + svc.Hostname, port, f.filter(dns.TypeANY, e.Workload)})
		}
	}
	return list
}

func targetPort(ports []mesh.Port, of mesh.Port) uint16 {
	for _, p := range ports {
		if p.Service == of.Service {
			return p.Target
		}
	}
	return of.Target
}

// label is the name of an endpoint below its services. Only StatefulSets name
// their pods for DNS; the others go by their address, as CoreDNS has it.
func label(w *mesh.Workload, a netip.Addr) string {
	ordinal, ok := strings.CutPrefix(w.Name, w.WorkloadName+"-")
	if _, err := strconv.ParseUint(ordinal, 10, 31); ok && err == nil {
		return strings.ToLower(w.Name)
	}
	return dashed(a)
}

// pointer answers PTR.
func (f *finder) pointer(name string) Answer {
	addr, ok := reversed(name)
	if !ok {
		return Answer{}
	}
	at := mesh.NetAddr{Network: f.client.Network, Addr: addr}
	svc := f.view.ServiceByVIP(at, f.client.Namespace)
	if svc != nil && hasVIP(svc, at) && !strings.HasPrefix(svc.Hostname, "*") {
		return Answer{Known: true, Service: svc.Key(), Names: []string{svc.Hostname}}
	}
	w := f.view.WorkloadByAddr(at)
	if w == nil {
		return Answer{}
	}
	var a Answer
	for _, m := range w.Services {
		s := f.view.Service(m.Service)
		if s != nil && f.visible(s) && f.kubernetes(s.Hostname) && f.serves(s, w) {
			a.Known, a.Service = true, s.Key()
			a.Names = append(a.Names, label(w, addr)+"."+s.Hostname)
		}
	}
	return a
}

func hasVIP(s *mesh.Service, at mesh.NetAddr) bool {
	for _, v := range s.VIPs {
		if v == at {
			return true
		}
	}
	return false
}
