package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/config"
)

var (
	cart    = mesh.ServiceName{Namespace: "shop", Hostname: "cart"}
	backend = &config.Cluster{Name: "cart", Service: cart, Port: 80}
)

func pod(n int, change func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{
		UID: mesh.UID(fmt.Sprint("pod-", n)), Name: fmt.Sprint("cart-", n), Namespace: "shop", ServiceAccount: "cart", TrustDomain: "td",
		Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.0.0.", n)), netip.MustParseAddr(fmt.Sprint("fd00::", n))},
		Network:   "n", Protocol: mesh.HBONE, Capacity: 1,
		Services: []mesh.Membership{{Service: cart, Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
	}
	if change != nil {
		change(w)
	}
	return w
}

func service(change func(*mesh.Service)) *mesh.Service {
	s := &mesh.Service{Name: "cart", Namespace: "shop", Hostname: "cart", Ports: []mesh.Port{{Service: 80, Target: 7000}, {Service: 81, Target: 7001}}}
	if change != nil {
		change(s)
	}
	return s
}

// picked returns the addresses that many picks yield.
func picked(c *Clusters, cl *config.Cluster) []string {
	seen := map[string]bool{}
	for range 100 {
		if e, err := c.Pick(cl); err == nil {
			seen[e.Addr.String()] = true
		}
	}
	var out []string
	for a := range seen {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}

func TestWhoTakesTraffic(t *testing.T) {
	t.Parallel()
	store := workloads.New()
	c := New(Config{View: store, Network: "n"})
	store.Subscribe(c.Changed)
	store.Apply(workloads.Update{Services: []*mesh.Service{service(nil)}, Workloads: []*mesh.Workload{
		pod(1, nil),
		pod(2, func(w *mesh.Workload) { w.Status = mesh.Unhealthy }),
		pod(3, func(w *mesh.Workload) { w.Network = "elsewhere" }),
		pod(4, func(w *mesh.Workload) { w.Capacity = 0 }),
		pod(5, func(w *mesh.Workload) { w.Services[0].Ports = nil }),
		pod(6, func(w *mesh.Workload) { w.Addresses = nil }),
		pod(7, func(w *mesh.Workload) { w.Services[0].Ports[0].Target = 0 }),
	}})
	if got := fmt.Sprint(picked(c, backend)); got != "[10.0.0.1:8080 10.0.0.5:7000]" {
		t.Error(got)
	}
	v6 := New(Config{View: store, Network: "n", IPv6: true})
	if got := fmt.Sprint(picked(v6, backend)); got != "[[fd00::1]:8080 [fd00::5]:7000]" {
		t.Error(got)
	}
	store.Apply(workloads.Update{Services: []*mesh.Service{service(func(s *mesh.Service) { s.LoadBalancing = &mesh.LoadBalancing{AllowAll: true} })}})
	if got := fmt.Sprint(picked(c, backend)); got != "[10.0.0.1:8080 10.0.0.2:8080 10.0.0.5:7000]" {
		t.Error(got)
	}
	store.Apply(workloads.Update{RemovedWorkloads: []mesh.UID{"pod-1", "pod-2", "pod-5"}})
	if _, err := c.Pick(backend); reason.Of(err) != reason.NoHealthyUpstream {
		t.Error(err)
	}
}

func TestEveryPolicy(t *testing.T) {
	t.Parallel()
	store := workloads.New()
	c := New(Config{View: store, Network: "n"})
	store.Apply(workloads.Update{Services: []*mesh.Service{service(nil)}, Workloads: []*mesh.Workload{pod(1, nil), pod(2, nil), pod(3, nil)}})
	for _, p := range []config.BalancePolicy{config.RoundRobin, config.LeastRequest, config.Random} {
		cl := *backend
		cl.Balance = p
		if got := len(picked(c, &cl)); got != 3 {
			t.Errorf("%v reaches %d endpoints", p, got)
		}
	}
	first, err := c.Pick(backend)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if e, err := c.Pick(backend, first); err != nil || e.Addr == first.Addr {
			t.Fatalf("%v, %v: avoided %v", e, err, first.Addr)
		}
	}
}

func TestCountersOutliveChanges(t *testing.T) {
	t.Parallel()
	store := workloads.New()
	c := New(Config{View: store, Network: "n"})
	store.Subscribe(c.Changed)
	store.Apply(workloads.Update{Services: []*mesh.Service{service(func(s *mesh.Service) { s.SubjectAltNames = []string{"spiffe://td/ns/a/sa/b"} })},
		Workloads: []*mesh.Workload{pod(1, nil)}})
	before, err := c.Pick(backend)
	if err != nil {
		t.Fatal(err)
	}
	before.Begin()
	store.Apply(workloads.Update{Workloads: []*mesh.Workload{pod(1, func(w *mesh.Workload) { w.Node = "moved" })}})
	after, err := c.Pick(backend)
	if err != nil || after == before || after.Active() != 1 {
		t.Errorf("%v, %v", after, err)
	}
	if len(after.Expect) != 2 || after.Expect[1].Namespace != "a" {
		t.Errorf("expects %v", after.Expect)
	}
	before.End()
	if after.Active() != 0 {
		t.Error("counters are not shared")
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	store := workloads.New()
	c := New(Config{View: store, Network: "n"})
	var pods []*mesh.Workload
	for i := range 200 {
		pods = append(pods, pod(i+1, nil))
	}
	store.Apply(workloads.Update{Services: []*mesh.Service{service(nil)}, Workloads: pods})
	if n := testing.AllocsPerRun(100, func() { _, _ = c.Pick(backend) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
