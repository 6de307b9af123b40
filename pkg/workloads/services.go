package workloads

import (
	"cmp"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func (t *tx) service(name mesh.ServiceName) *record {
	c := t.services.find(t.s.hash.service(name))
	for r := c.next(); r != nil; r = c.next() {
		if r.Key() == name {
			return r
		}
	}
	return nil
}

// putService adds or replaces a service; one that is replaced keeps its age, and
// its endpoints, which belong to the workloads.
func (t *tx) putService(svc *mesh.Service) {
	old := t.service(svc.Key())
	if old != nil && old.Service == svc {
		return
	}
	r := &record{Service: svc}
	if old != nil {
		r.seq = old.seq
		t.unindexService(old)
	} else {
		t.s.seq++
		r.seq = t.s.seq
		t.sizes[1]++
	}
	t.indexService(r)
	t.change.Services = append(t.change.Services, svc)
}

func (t *tx) removeService(name mesh.ServiceName) {
	if old := t.service(name); old != nil {
		t.unindexService(old)
		t.sizes[1]--
		t.change.RemovedServices = append(t.change.RemovedServices, old.Service)
	}
}

func (t *tx) indexService(r *record) {
	h := &t.s.hash
	t.services.insert(h.service(r.Key()), r)
	for _, a := range r.VIPs {
		t.byVIP.insert(h.addr(a.Network, a.Addr), r)
	}
	for _, c := range r.CIDRs {
		t.byCIDR.insert(h.prefix(c.Network, c.Prefix), r)
		t.s.lengthCount[lengthOf(c.Prefix)]++
	}
	t.setHost(r, true)
}

func (t *tx) unindexService(r *record) {
	h := &t.s.hash
	t.services.remove(h.service(r.Key()), r)
	for _, a := range r.VIPs {
		t.byVIP.remove(h.addr(a.Network, a.Addr), r)
	}
	for _, c := range r.CIDRs {
		t.byCIDR.remove(h.prefix(c.Network, c.Prefix), r)
		if l := lengthOf(c.Prefix); t.s.lengthCount[l] > 1 {
			t.s.lengthCount[l]--
		} else {
			delete(t.s.lengthCount, l)
		}
	}
	t.setHost(r, false)
}

// setHost puts the service into its hostname's group, or takes it out.
func (t *tx) setHost(r *record, present bool) {
	h := t.s.hash.string(r.Hostname)
	next := &hostGroup{host: r.Hostname}
	c := t.hosts.find(h)
	for g := c.next(); g != nil; g = c.next() {
		if g.host == r.Hostname {
			next.services, next.seqs = slices.Clone(g.services), slices.Clone(g.seqs)
			t.hosts.remove(h, g)
			break
		}
	}
	i, found := slices.BinarySearch(next.seqs, r.seq)
	if found {
		next.services, next.seqs = slices.Delete(next.services, i, i+1), slices.Delete(next.seqs, i, i+1)
	}
	if present {
		next.services, next.seqs = slices.Insert(next.services, i, r.Service), slices.Insert(next.seqs, i, r.seq)
	}
	if len(next.services) > 0 {
		t.hosts.insert(h, next)
	}
}

// publishLengths publishes the prefix lengths in use, longest first.
func (t *tx) publishLengths() {
	if t.byCIDR.dirty == nil {
		return
	}
	lengths := make([]prefixLength, 0, len(t.s.lengthCount))
	for l := range t.s.lengthCount {
		lengths = append(lengths, l)
	}
	slices.SortFunc(lengths, func(a, b prefixLength) int { return cmp.Compare(b.bits, a.bits) })
	t.s.lengths.Store(&lengths)
}

// regroup rebuilds the lists of general policies, which are few.
func (s *Store) regroup() {
	var global []*mesh.Policy
	own := make(map[string][]*mesh.Policy)
	s.policies.each(func(p *mesh.Policy) {
		switch p.Scope {
		case mesh.ScopeGlobal:
			global = append(global, p)
		case mesh.ScopeNamespace:
			own[p.Name.Namespace] = append(own[p.Name.Namespace], p)
		}
	})
	sortPolicies(global)
	s.global.Store(&global)
	groups := edit[policyGroup]{t: &s.byNamespace}
	s.byNamespace.each(func(g *policyGroup) { groups.remove(s.hash.string(g.namespace), g) })
	for namespace, list := range own {
		sortPolicies(list)
		g := &policyGroup{namespace: namespace, policies: append(slices.Clone(global), list...)}
		groups.insert(s.hash.string(namespace), g)
	}
	groups.commit()
}

func sortPolicies(list []*mesh.Policy) {
	slices.SortFunc(list, func(a, b *mesh.Policy) int {
		return cmp.Or(cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
	})
}
