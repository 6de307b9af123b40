package workloads

import (
	"cmp"
	"reflect"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Apply makes one batch of changes visible. Its cost is in proportion to the
// batch and to the number of endpoints of the services concerned.
func (s *Store) Apply(u Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx := s.begin()
	tx.removals(u)
	for _, w := range u.Workloads {
		tx.putWorkload(w)
	}
	for _, svc := range u.Services {
		tx.putService(svc)
	}
	for _, p := range u.Policies {
		tx.putPolicy(p)
	}
	if tx.commit() {
		s.announce(tx)
	}
}

// tx is one Apply: edits of every index, and what to tell about them.
type tx struct {
	s         *Store
	byUID     edit[mesh.Workload]
	byAddr    edit[mesh.Workload]
	byPod     edit[mesh.Workload]
	byHost    edit[mesh.Workload]
	services  edit[record]
	hosts     edit[hostGroup]
	byVIP     edit[record]
	byCIDR    edit[record]
	endpoints edit[endpointSet]
	policies  edit[mesh.Policy]

	members  []memberChange
	removed  map[mesh.UID]*mesh.Workload
	change   Change
	verdicts bool // live connections may be judged differently
	sizes    [3]int64
}

func (s *Store) begin() *tx {
	t := &tx{s: s}
	t.byUID.t, t.byAddr.t, t.byPod.t, t.byHost.t = &s.byUID, &s.byAddr, &s.byPod, &s.byHost
	t.services.t, t.hosts.t, t.byVIP.t, t.byCIDR.t = &s.services, &s.hosts, &s.byVIP, &s.byCIDR
	t.endpoints.t, t.policies.t = &s.endpoints, &s.policies
	return t
}

func (t *tx) removals(u Update) {
	for _, uid := range u.RemovedWorkloads {
		t.removeWorkload(uid)
	}
	for _, name := range u.RemovedServices {
		t.removeService(name)
	}
	for _, name := range u.Removed {
		t.removeWorkload(mesh.UID(name))
		if service, err := mesh.ParseServiceName(name); err == nil {
			t.removeService(service)
		}
	}
	for _, name := range u.RemovedPolicies {
		t.removePolicy(name)
	}
}

// commit publishes every edit and reports whether there was any. New workloads
// can be found before the services that lead to them.
func (t *tx) commit() bool {
	t.byUID.commit()
	t.byAddr.commit()
	t.byPod.commit()
	t.byHost.commit()
	t.applyMembers()
	t.endpoints.commit()
	t.services.commit()
	t.hosts.commit()
	t.byVIP.commit()
	t.publishLengths()
	t.byCIDR.commit()
	t.policies.commit()
	if len(t.change.Policies)+len(t.change.RemovedPolicies) > 0 {
		t.verdicts = true
		t.s.regroup()
	}
	for i, n := range t.sizes {
		t.s.sizes[i].Add(n)
	}
	c := &t.change
	return len(c.Workloads)+len(c.RemovedWorkloads)+len(c.Services)+len(c.RemovedServices)+
		len(c.Policies)+len(c.RemovedPolicies) > 0
}

// announce tells who waits and who subscribed.
func (s *Store) announce(t *tx) {
	if t.verdicts {
		s.policyVersion.Add(1)
		s.policyChanged.fire()
	}
	s.changed.fire()
	t.change.PolicyVersion = s.policyVersion.Load()
	for _, sub := range s.subscribers {
		sub.f(t.change)
	}
}

func (t *tx) workload(uid mesh.UID) *mesh.Workload {
	c := t.byUID.find(t.s.hash.string(string(uid)))
	for w := c.next(); w != nil; w = c.next() {
		if w.UID == uid {
			return w
		}
	}
	return nil
}

func (t *tx) putWorkload(w *mesh.Workload) {
	old := t.workload(w.UID)
	if old == w {
		return
	}
	t.s.intern.workload(w)
	if old != nil {
		t.unindex(old, w)
	} else {
		t.sizes[0]++
		old = t.removed[w.UID]
	}
	if old != nil && (old.Namespace != w.Namespace || !slices.Equal(old.Policies, w.Policies)) {
		t.verdicts = true
	}
	t.index(w)
	t.change.Workloads = append(t.change.Workloads, w)
}

func (t *tx) removeWorkload(uid mesh.UID) {
	if old := t.workload(uid); old != nil {
		t.unindex(old, nil)
		t.sizes[0]--
		if t.removed == nil {
			t.removed = make(map[mesh.UID]*mesh.Workload)
		}
		t.removed[uid] = old
		t.change.RemovedWorkloads = append(t.change.RemovedWorkloads, old)
	}
}

func (t *tx) index(w *mesh.Workload) {
	h := &t.s.hash
	t.byUID.insert(h.string(string(w.UID)), w)
	t.byPod.insert(h.pair(w.Namespace, w.Name), w)
	if w.NetworkMode != mesh.NetworkHost {
		for _, a := range w.Addresses {
			t.byAddr.insert(h.addr(w.Network, a), w)
		}
	}
	if w.Hostname != "" {
		t.byHost.insert(h.pair(w.Namespace, w.Hostname), w)
	}
	for _, m := range w.Services {
		t.members = append(t.members, memberChange{m.Service, w.UID, Endpoint{w, m.Ports}, len(t.members)})
	}
}

// unindex takes w out. Its endpoints go too, but for those that next replaces.
func (t *tx) unindex(w, next *mesh.Workload) {
	h := &t.s.hash
	t.byUID.remove(h.string(string(w.UID)), w)
	t.byPod.remove(h.pair(w.Namespace, w.Name), w)
	if w.NetworkMode != mesh.NetworkHost {
		for _, a := range w.Addresses {
			t.byAddr.remove(h.addr(w.Network, a), w)
		}
	}
	if w.Hostname != "" {
		t.byHost.remove(h.pair(w.Namespace, w.Hostname), w)
	}
	for _, m := range w.Services {
		if next != nil {
			if _, stays := next.Member(m.Service); stays {
				continue
			}
		}
		t.members = append(t.members, memberChange{service: m.Service, uid: w.UID, order: len(t.members)})
	}
}

// memberChange sets one endpoint of a service, or removes it when its workload is nil.
type memberChange struct {
	service  mesh.ServiceName
	uid      mesh.UID
	endpoint Endpoint
	order    int
}

func compareMembers(a, b memberChange) int {
	return cmp.Or(
		cmp.Compare(a.service.Hostname, b.service.Hostname),
		cmp.Compare(a.service.Namespace, b.service.Namespace),
		cmp.Compare(a.uid, b.uid),
		cmp.Compare(a.order, b.order))
}

// applyMembers merges the changes into each service's list, one pass per service.
func (t *tx) applyMembers() {
	slices.SortFunc(t.members, compareMembers)
	for rest := t.members; len(rest) > 0; {
		name := rest[0].service
		n := slices.IndexFunc(rest, func(m memberChange) bool { return m.service != name })
		if n < 0 {
			n = len(rest)
		}
		t.mergeMembers(name, rest[:n])
		rest = rest[n:]
	}
	t.members = nil
}

func (t *tx) mergeMembers(name mesh.ServiceName, changes []memberChange) {
	h := t.s.hash.service(name)
	old := t.endpointSet(h, name)
	set := &endpointSet{service: name}
	if old != nil {
		set.service = old.service
		set.list = mergeEndpoints(old.list, changes)
		t.endpoints.remove(h, old)
	} else {
		set.list = mergeEndpoints(nil, changes)
	}
	if len(set.list) > 0 {
		t.endpoints.insert(h, set)
	}
}

func (t *tx) endpointSet(h uint64, name mesh.ServiceName) *endpointSet {
	c := t.endpoints.find(h)
	for e := c.next(); e != nil; e = c.next() {
		if e.service == name {
			return e
		}
	}
	return nil
}

// mergeEndpoints merges two lists that are sorted by UID; of several changes to
// one UID the last counts.
func mergeEndpoints(old []Endpoint, changes []memberChange) []Endpoint {
	out := make([]Endpoint, 0, len(old)+len(changes))
	for i, c := range changes {
		if i+1 < len(changes) && changes[i+1].uid == c.uid {
			continue
		}
		n, found := slices.BinarySearchFunc(old, c.uid, func(e Endpoint, uid mesh.UID) int {
			return cmp.Compare(e.Workload.UID, uid)
		})
		out = append(out, old[:n]...)
		old = old[n:]
		if found {
			old = old[1:]
		}
		if c.endpoint.Workload != nil {
			out = append(out, c.endpoint)
		}
	}
	out = append(out, old...)
	if cap(out) > len(out)+len(out)/4+8 {
		out = slices.Clip(slices.Clone(out))
	}
	return out
}

func (t *tx) policy(name mesh.PolicyName) *mesh.Policy {
	c := t.policies.find(t.s.hash.policy(name))
	for p := c.next(); p != nil; p = c.next() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// putPolicy ignores one that is equal to what is known: policies carry no version
// and come again at every reconnect.
func (t *tx) putPolicy(p *mesh.Policy) {
	old := t.policy(p.Name)
	if old != nil && reflect.DeepEqual(old, p) {
		return
	}
	h := t.s.hash.policy(p.Name)
	if old != nil {
		t.policies.remove(h, old)
	} else {
		t.sizes[2]++
	}
	t.policies.insert(h, p)
	t.change.Policies = append(t.change.Policies, p)
}

func (t *tx) removePolicy(name mesh.PolicyName) {
	if old := t.policy(name); old != nil {
		t.policies.remove(t.s.hash.policy(name), old)
		t.sizes[2]--
		t.change.RemovedPolicies = append(t.change.RemovedPolicies, old)
	}
}
