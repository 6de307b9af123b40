package workloads

import (
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func TestNames(t *testing.T) {
	t.Parallel()
	store := New()
	n := NewNames(store)
	pod := func(uid mesh.UID, workload string) *mesh.Workload {
		return &mesh.Workload{UID: uid, Name: string(uid), Namespace: "shop", WorkloadName: workload}
	}
	for _, step := range []struct {
		what      string
		update    Update
		cart, web bool
	}{
		{"two pods of one workload", Update{Workloads: []*mesh.Workload{pod("a", "cart"), pod("b", "cart")}}, true, false},
		{"one goes", Update{RemovedWorkloads: []mesh.UID{"a"}}, true, false},
		{"the other is now of another", Update{Workloads: []*mesh.Workload{pod("b", "web")}}, false, true},
		{"it changes otherwise", Update{Workloads: []*mesh.Workload{{UID: "b", Namespace: "shop", WorkloadName: "web", Node: "n1"}}}, false, true},
		{"it goes", Update{RemovedWorkloads: []mesh.UID{"b"}}, false, false},
	} {
		store.Apply(step.update)
		if cart, web := n.Exists("shop", "cart"), n.Exists("shop", "web"); cart != step.cart || web != step.web {
			t.Errorf("%s: cart %v, web %v", step.what, cart, web)
		}
	}
	if len(n.byUID) != 0 || len(n.pods) != 0 {
		t.Errorf("something is remembered of what has gone: %v %v", n.byUID, n.pods)
	}
	n.Close()
	n.Close()
	store.Apply(Update{Workloads: []*mesh.Workload{pod("a", "cart")}})
	if n.Exists("shop", "cart") {
		t.Error("it still follows")
	}
}
