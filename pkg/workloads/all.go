package workloads

import (
	"iter"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Workloads yields every workload, in no order; what changes meanwhile may be seen
// or not.
func (s *Store) Workloads() iter.Seq[*mesh.Workload] { return all(&s.byUID) }

// Services yields every service, in the same way.
func (s *Store) Services() iter.Seq[*mesh.Service] {
	return func(yield func(*mesh.Service) bool) {
		for r := range all(&s.services) {
			if !yield(r.Service) {
				return
			}
		}
	}
}

// Policies yields every policy, in the same way.
func (s *Store) Policies() iter.Seq[*mesh.Policy] { return all(&s.policies) }

// PoliciesIn returns the policies of a namespace that select workloads by their
// labels, in no order: those that may or may not concern a workload of which
// nothing is known but its name. It looks at every policy.
func (s *Store) PoliciesIn(namespace string) []*mesh.Policy {
	var list []*mesh.Policy
	for p := range s.Policies() {
		if p.Scope == mesh.ScopeWorkloadSelector && p.Name.Namespace == namespace {
			list = append(list, p)
		}
	}
	return list
}

func all[T any](t *table[T]) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := range t.shards {
			s := t.shards[i].Load()
			if s == nil {
				continue
			}
			for _, v := range s.vals {
				if v != nil && !yield(v) {
					return
				}
			}
		}
	}
}
