package workloads

import (
	"math/rand/v2"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestAll: everything that is found by name is yielded, once.
func TestAll(t *testing.T) {
	t.Parallel()
	r, s := world{rand.New(rand.NewPCG(1, 2))}, New()
	for range 200 {
		s.Apply(Update{Workloads: []*mesh.Workload{r.workload()}, Services: []*mesh.Service{r.service()}, Policies: []*mesh.Policy{{Name: r.policyName(), Scope: mesh.Scope(r.IntN(3))}}})
	}
	workloads, services, policies := s.Len()
	seen := map[any]bool{}
	for w := range s.Workloads() {
		if workloads--; seen[w.UID] || s.Workload(w.UID) != w {
			t.Errorf("workload %s", w.UID)
		}
		seen[w.UID] = true
	}
	for v := range s.Services() {
		if services--; seen[v.Key()] || s.Service(v.Key()) != v {
			t.Errorf("service %s", v.Key())
		}
		seen[v.Key()] = true
	}
	in := map[string]int{}
	for p := range s.Policies() {
		if policies--; seen[p.Name] || s.Policy(p.Name) != p {
			t.Errorf("policy %s", p.Name)
		}
		seen[p.Name] = true
		if p.Scope == mesh.ScopeWorkloadSelector {
			in[p.Name.Namespace]++
		}
	}
	if workloads != 0 || services != 0 || policies != 0 {
		t.Errorf("%d workloads, %d services, %d policies not seen", workloads, services, policies)
	}
	for ns, n := range in {
		if got := s.PoliciesIn(ns); len(got) != n {
			t.Errorf("%d policies in %s, want %d", len(got), ns, n)
		}
	}
	for range s.Workloads() {
		break // a reader may have enough
	}
}
