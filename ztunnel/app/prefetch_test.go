package app

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// wanted records which certificates are asked for.
type wanted map[string]bool

func (w wanted) Prefetch(id mesh.Identity) { w[id.ServiceAccount] = true }
func (w wanted) Forget(id mesh.Identity)   { delete(w, id.ServiceAccount) }

func (w wanted) names() []string {
	names := make([]string, 0, len(w))
	for n := range w {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func TestPrefetch(t *testing.T) {
	t.Parallel()
	store, asked := workloads.New(), wanted{}
	p := newPrefetch(store, asked, "n1")
	defer p.close()
	pod := func(name, sa, node string, proto mesh.TunnelProtocol) *mesh.Workload {
		return &mesh.Workload{UID: mesh.UID(name), Name: name, Namespace: "default", WorkloadName: name,
			ServiceAccount: sa, TrustDomain: "cluster.local", Node: node, Protocol: proto}
	}
	steps := []struct {
		what   string
		update workloads.Update
		want   []string
	}{
		{"one pod of this node, one of another, one outside the mesh",
			workloads.Update{Workloads: []*mesh.Workload{pod("a", "one", "n1", mesh.HBONE), pod("b", "two", "n2", mesh.HBONE), pod("c", "three", "n1", mesh.TCP)}},
			[]string{"one"}},
		{"a second pod of the same account",
			workloads.Update{Workloads: []*mesh.Workload{pod("a2", "one", "n1", mesh.HBONE)}}, []string{"one"}},
		{"the first one goes",
			workloads.Update{RemovedWorkloads: []mesh.UID{"a"}}, []string{"one"}},
		{"the second one changes its account",
			workloads.Update{Workloads: []*mesh.Workload{pod("a2", "four", "n1", mesh.HBONE)}}, []string{"four"}},
		{"the pod outside joins",
			workloads.Update{Workloads: []*mesh.Workload{pod("c", "three", "n1", mesh.HBONE)}}, []string{"four", "three"}},
		{"and leaves",
			workloads.Update{Workloads: []*mesh.Workload{pod("c", "three", "n1", mesh.TCP)}}, []string{"four"}},
		{"everything goes",
			workloads.Update{RemovedWorkloads: []mesh.UID{"a2", "b", "c"}}, []string{}},
	}
	for _, s := range steps {
		store.Apply(s.update)
		if diff := cmp.Diff(s.want, asked.names()); diff != "" {
			t.Errorf("%s: -want +got\n%s", s.what, diff)
		}
	}
	if len(p.needed) != 0 || len(p.local) != 0 {
		t.Errorf("something is remembered of what has gone: %v %v", p.needed, p.local)
	}
}
