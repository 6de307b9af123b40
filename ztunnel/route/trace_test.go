package route

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestTrace holds that a trace tells each step, ends with the decision, and that
// the decision is the one that is made without it.
func TestTrace(t *testing.T) {
	t.Parallel()
	v, f := benchMesh(2)
	want, err := Choose(v, f)
	if err != nil {
		t.Fatal(err)
	}
	f.Trace = &Trace{}
	got, err := Choose(v, f)
	if err != nil || got.Next != want.Next || got.Authority() != want.Authority() {
		t.Errorf("with a trace the answer is %s, %v, without one %s", got, err, want)
	}
	wantSteps(t, f.Trace, "address /10.96.0.1: service shop/cart.shop.svc.cluster.local",
		"waypoint of service shop/cart.shop.svc.cluster.local: none",
		"endpoints of service shop/cart.shop.svc.cluster.local: workload Kubernetes//Pod/shop/cart-1, port 8080, of 2 that can be used",
		"decision 10.96.0.1:80: tunnel to 10.1.0.1:15008 as cluster.local/ns/shop/sa/cart, target 10.1.0.1:8080")

	if c := f.Trace.Steps[2].Candidates; len(c) != 2 || c[0].Chosen || !c[1].Chosen || c[1].Port != 8080 || c[1].Weight != 1 {
		t.Errorf("candidates: %+v", c)
	}

	f.Trace, f.Dst = &Trace{}, netip.MustParseAddrPort("10.96.0.1:81")
	if _, err := Choose(v, f); err == nil {
		t.Error("an undeclared port is served")
	}
	wantSteps(t, f.Trace, "port 81 of service shop/cart.shop.svc.cluster.local: not declared", "decision 10.96.0.1:81: refused: ")

	w := v.WorkloadByAddr(mesh.NetAddr{Addr: netip.MustParseAddr("10.1.0.1")})
	a := Arrival{Local: w, Accepted: w.Addresses[0], Authority: "10.1.0.9:80", Trace: &Trace{}}
	if _, err := Deliver(v, a); err == nil {
		t.Error("another pod's address is accepted")
	}
	wantSteps(t, a.Trace, "delivery 10.1.0.9:80: refused with status 400")
	a.Authority, a.Trace = "cart.shop.svc.cluster.local:80", &Trace{}
	if _, err := Deliver(v, a); err != nil {
		t.Error(err)
	}
	wantSteps(t, a.Trace, "authority cart.shop.svc.cluster.local: service shop/cart.shop.svc.cluster.local, whose port 80 is 8080 here",
		"delivery cart.shop.svc.cluster.local:80: to 10.1.0.1:8080")
}

func wantSteps(t *testing.T, trace *Trace, want ...string) {
	t.Helper()
	var got []string
	for _, s := range trace.Steps {
		got = append(got, s.String())
	}
	all := strings.Join(got, "\n")
	for _, w := range want {
		if !strings.Contains(all, w) {
			t.Errorf("no step %q in\n%s", w, all)
		}
	}
}
