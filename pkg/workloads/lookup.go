package workloads

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Workload implements View.
func (s *Store) Workload(uid mesh.UID) *mesh.Workload {
	c := s.byUID.find(s.hash.string(string(uid)))
	for w := c.next(); w != nil; w = c.next() {
		if w.UID == uid {
			return w
		}
	}
	return nil
}

// WorkloadByAddr implements View.
func (s *Store) WorkloadByAddr(addr mesh.NetAddr) *mesh.Workload {
	addr.Addr = addr.Addr.Unmap()
	var best *mesh.Workload
	c := s.byAddr.find(s.hash.addr(addr.Network, addr.Addr))
	for w := c.next(); w != nil; w = c.next() {
		if w.Network == addr.Network && slices.Contains(w.Addresses, addr.Addr) && preferred(w, best) {
			best = w
		}
	}
	return best
}

// preferred reports whether w goes before other when both claim one thing.
func preferred(w, other *mesh.Workload) bool {
	if other == nil {
		return true
	}
	if p, q := isPod(w), isPod(other); p != q {
		return p
	}
	if w.Protocol != other.Protocol {
		return w.Protocol == mesh.HBONE
	}
	return w.UID < other.UID
}

func isPod(w *mesh.Workload) bool { return strings.Contains(string(w.UID), "//Pod/") }

// WorkloadByInfo implements View.
func (s *Store) WorkloadByInfo(info mesh.PodInfo, node string) *mesh.Workload {
	var best *mesh.Workload
	c := s.byPod.find(s.hash.pair(info.Namespace, info.Name))
	for w := c.next(); w != nil; w = c.next() {
		if w.Name == info.Name && w.Namespace == info.Namespace && w.ServiceAccount == info.ServiceAccount &&
			(node == "" || w.Node == node) && preferred(w, best) {
			best = w
		}
	}
	return best
}

// WorkloadByHost implements View.
func (s *Store) WorkloadByHost(name mesh.ServiceName) *mesh.Workload {
	if name.Hostname == "" {
		return nil
	}
	var best *mesh.Workload
	c := s.byHost.find(s.hash.service(name))
	for w := c.next(); w != nil; w = c.next() {
		if w.Hostname == name.Hostname && w.Namespace == name.Namespace && preferred(w, best) {
			best = w
		}
	}
	return best
}

// Service implements View.
func (s *Store) Service(name mesh.ServiceName) *mesh.Service {
	c := s.services.find(s.hash.service(name))
	for r := c.next(); r != nil; r = c.next() {
		if r.Key() == name {
			return r.Service
		}
	}
	return nil
}

// ServicesByHost implements View.
func (s *Store) ServicesByHost(host string) []*mesh.Service {
	c := s.hosts.find(s.hash.string(host))
	for g := c.next(); g != nil; g = c.next() {
		if g.host == host {
			return g.services
		}
	}
	return nil
}

// ServiceByVIP implements View.
func (s *Store) ServiceByVIP(addr mesh.NetAddr, clientNS string) *mesh.Service {
	addr.Addr = addr.Addr.Unmap()
	var best candidate
	c := s.byVIP.find(s.hash.addr(addr.Network, addr.Addr))
	for r := c.next(); r != nil; r = c.next() {
		if slices.Contains(r.VIPs, addr) {
			best.consider(r, 0, clientNS)
		}
	}
	if best.record == nil {
		s.considerRanges(&best, addr, clientNS)
	}
	if best.record == nil {
		return nil
	}
	return best.record.Service
}

// considerRanges looks the address up under every prefix length in use.
func (s *Store) considerRanges(best *candidate, addr mesh.NetAddr, clientNS string) {
	lengths := s.lengths.Load()
	if lengths == nil {
		return
	}
	for _, l := range *lengths {
		if l.is4 != addr.Addr.Is4() {
			continue
		}
		p, err := addr.Addr.Prefix(l.bits)
		if err != nil {
			continue
		}
		want := mesh.NetPrefix{Network: addr.Network, Prefix: p}
		c := s.byCIDR.find(s.hash.prefix(addr.Network, p))
		for r := c.next(); r != nil; r = c.next() {
			if slices.Contains(r.CIDRs, want) {
				best.consider(r, l.bits, clientNS)
			}
		}
	}
}

// candidate is the best service so far for one client.
type candidate struct {
	record *record
	bits   int
}

func (b *candidate) consider(r *record, bits int, clientNS string) {
	if r.NamespaceOnly && r.Namespace != clientNS {
		return
	}
	if b.record == nil || b.worseThan(r, bits, clientNS) {
		b.record, b.bits = r, bits
	}
}

func (b *candidate) worseThan(r *record, bits int, clientNS string) bool {
	if own, other := r.Namespace == clientNS, b.record.Namespace == clientNS; own != other {
		return own
	}
	if bits != b.bits {
		return bits > b.bits
	}
	if r.Canonical != b.record.Canonical {
		return r.Canonical
	}
	return r.seq < b.record.seq
}

// Endpoints implements View.
func (s *Store) Endpoints(name mesh.ServiceName) []Endpoint {
	c := s.endpoints.find(s.hash.service(name))
	for e := c.next(); e != nil; e = c.next() {
		if e.service == name {
			return e.list
		}
	}
	return nil
}

// Policy implements View.
func (s *Store) Policy(name mesh.PolicyName) *mesh.Policy {
	c := s.policies.find(s.hash.policy(name))
	for p := c.next(); p != nil; p = c.next() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// PoliciesFor implements View. It allocates only for workloads that name policies.
func (s *Store) PoliciesFor(w *mesh.Workload) (policies []*mesh.Policy, missing []mesh.PolicyName) {
	general := s.general(w.Namespace)
	if len(w.Policies) == 0 {
		return general, nil
	}
	policies = make([]*mesh.Policy, 0, len(general)+len(w.Policies))
	return s.appendNamed(append(policies, general...), w)
}

// AppendPolicies is PoliciesFor into a slice that the caller may use again.
func (s *Store) AppendPolicies(dst []*mesh.Policy, w *mesh.Workload) (policies []*mesh.Policy, missing []mesh.PolicyName) {
	return s.appendNamed(append(dst, s.general(w.Namespace)...), w)
}

// general returns the policies that apply to every workload of a namespace.
func (s *Store) general(namespace string) []*mesh.Policy {
	c := s.byNamespace.find(s.hash.string(namespace))
	for g := c.next(); g != nil; g = c.next() {
		if g.namespace == namespace {
			return g.policies
		}
	}
	if global := s.global.Load(); global != nil {
		return *global
	}
	return nil
}

func (s *Store) appendNamed(policies []*mesh.Policy, w *mesh.Workload) ([]*mesh.Policy, []mesh.PolicyName) {
	var missing []mesh.PolicyName
	for _, name := range w.Policies {
		p := s.Policy(name)
		switch {
		case p == nil:
			missing = append(missing, name)
		case p.Scope == mesh.ScopeGlobal, p.Scope == mesh.ScopeNamespace && p.Name.Namespace == w.Namespace:
			// among the general ones already
		default:
			policies = append(policies, p)
		}
	}
	return policies, missing
}

// prefixLength is one length that some service's range has.
type prefixLength struct {
	is4  bool
	bits int
}

func lengthOf(p netip.Prefix) prefixLength { return prefixLength{p.Addr().Is4(), p.Bits()} }
