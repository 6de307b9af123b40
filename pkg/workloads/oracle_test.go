package workloads

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// oracle answers every lookup by looking at everything.
type oracle struct {
	workloads map[mesh.UID]*mesh.Workload
	services  []*mesh.Service // oldest first
	policies  map[mesh.PolicyName]*mesh.Policy
}

func newOracle() *oracle {
	return &oracle{workloads: map[mesh.UID]*mesh.Workload{}, policies: map[mesh.PolicyName]*mesh.Policy{}}
}

func (o *oracle) apply(u Update) {
	for _, uid := range u.RemovedWorkloads {
		delete(o.workloads, uid)
	}
	for _, name := range u.RemovedServices {
		o.removeService(name)
	}
	for _, name := range u.Removed {
		delete(o.workloads, mesh.UID(name))
		ns, host, _ := strings.Cut(name, "/")
		o.removeService(mesh.ServiceName{Namespace: ns, Hostname: host})
	}
	for _, name := range u.RemovedPolicies {
		delete(o.policies, name)
	}
	for _, w := range u.Workloads {
		o.workloads[w.UID] = w
	}
	for _, s := range u.Services {
		if i := slices.IndexFunc(o.services, func(t *mesh.Service) bool { return t.Key() == s.Key() }); i >= 0 {
			o.services[i] = s
		} else {
			o.services = append(o.services, s)
		}
	}
	for _, p := range u.Policies {
		o.policies[p.Name] = p
	}
}

func (o *oracle) removeService(name mesh.ServiceName) {
	o.services = slices.DeleteFunc(o.services, func(t *mesh.Service) bool { return t.Key() == name })
}

func (o *oracle) all(keep func(*mesh.Workload) bool) []*mesh.Workload {
	var out []*mesh.Workload
	for _, w := range o.workloads {
		if keep(w) {
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b *mesh.Workload) int { return cmp.Compare(a.UID, b.UID) })
	return out
}

// best: pods first, HBONE first, smallest UID.
func (o *oracle) best(keep func(*mesh.Workload) bool) *mesh.Workload {
	list := o.all(keep)
	for _, filter := range []func(*mesh.Workload) bool{
		func(w *mesh.Workload) bool { return strings.Contains(string(w.UID), "//Pod/") },
		func(w *mesh.Workload) bool { return w.Protocol == mesh.HBONE },
	} {
		if slices.ContainsFunc(list, filter) {
			list = slices.DeleteFunc(list, func(w *mesh.Workload) bool { return !filter(w) })
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

func (o *oracle) Workload(uid mesh.UID) *mesh.Workload { return o.workloads[uid] }

func (o *oracle) WorkloadByAddr(a mesh.NetAddr) *mesh.Workload {
	return o.best(func(w *mesh.Workload) bool {
		return w.Network == a.Network && slices.Contains(w.Addresses, a.Addr) && w.NetworkMode == mesh.NetworkStandard
	})
}

func (o *oracle) WorkloadByInfo(p mesh.PodInfo, node string) *mesh.Workload {
	return o.best(func(w *mesh.Workload) bool {
		return w.Name == p.Name && w.Namespace == p.Namespace && w.ServiceAccount == p.ServiceAccount && (node == "" || node == w.Node)
	})
}

func (o *oracle) WorkloadByHost(n mesh.ServiceName) *mesh.Workload {
	return o.best(func(w *mesh.Workload) bool {
		return n.Hostname != "" && w.Hostname == n.Hostname && w.Namespace == n.Namespace
	})
}

func (o *oracle) Service(n mesh.ServiceName) *mesh.Service {
	for _, s := range o.services {
		if s.Key() == n {
			return s
		}
	}
	return nil
}

func (o *oracle) ServicesByHost(host string) []*mesh.Service {
	var out []*mesh.Service
	for _, s := range o.services {
		if s.Hostname == host {
			out = append(out, s)
		}
	}
	return out
}

func (o *oracle) ServiceByVIP(a mesh.NetAddr, ns string) *mesh.Service {
	if s := o.pick(ns, func(s *mesh.Service) int {
		if slices.Contains(s.VIPs, a) {
			return 0
		}
		return -1
	}); s != nil {
		return s
	}
	return o.pick(ns, func(s *mesh.Service) int {
		longest := -1
		for _, c := range s.CIDRs {
			if c.Network == a.Network && c.Prefix.Contains(a.Addr) {
				longest = max(longest, c.Prefix.Bits())
			}
		}
		return longest
	})
}

// pick sorts the visible services with a claim (>= 0) and takes the first.
func (o *oracle) pick(ns string, claim func(*mesh.Service) int) *mesh.Service {
	var list []*mesh.Service
	for _, s := range o.services {
		if claim(s) >= 0 && (!s.NamespaceOnly || s.Namespace == ns) {
			list = append(list, s)
		}
	}
	order := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(list, func(a, b *mesh.Service) int {
		return cmp.Or(
			cmp.Compare(order(a.Namespace == ns), order(b.Namespace == ns)),
			cmp.Compare(claim(b), claim(a)),
			cmp.Compare(order(a.Canonical), order(b.Canonical)))
	})
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

func (o *oracle) Endpoints(n mesh.ServiceName) []Endpoint {
	var out []Endpoint
	for _, w := range o.all(func(w *mesh.Workload) bool { _, ok := w.Member(n); return ok }) {
		m, _ := w.Member(n)
		out = append(out, Endpoint{w, m.Ports})
	}
	return out
}

func (o *oracle) Policy(n mesh.PolicyName) *mesh.Policy { return o.policies[n] }

func (o *oracle) PoliciesFor(w *mesh.Workload) (out []*mesh.Policy, missing []mesh.PolicyName) {
	for _, p := range o.policies {
		if p.Scope == mesh.ScopeGlobal || p.Scope == mesh.ScopeNamespace && p.Name.Namespace == w.Namespace {
			out = append(out, p)
		}
	}
	for _, n := range w.Policies {
		p := o.policies[n]
		if p == nil {
			missing = append(missing, n)
		} else if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, missing
}

var _ View = (*oracle)(nil)

func addr(i int) netip.Addr {
	if i%5 == 4 {
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
}
