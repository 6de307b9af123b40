package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

var (
	vip  = mesh.NetAddr{Addr: netip.MustParseAddr("10.96.0.7")}
	cart = &mesh.Service{Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local", VIPs: []mesh.NetAddr{vip}}
)

func address(w *mesh.Workload, s *mesh.Service) proto.Message {
	if w != nil {
		return &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(w)}}
	}
	return &workload.Address{Type: &workload.Address_Service{Service: workload.FromService(s)}}
}

// demanding returns a demand that asks a server which knows one service, named as
// upstream names it, and under its address by alias only.
func demanding(t *testing.T) (*Demand, *xdstest.Server) {
	t.Helper()
	server := xdstest.New(t, nil)
	server.Set(workload.TypeURL, "shop/"+cart.Hostname, "1", address(nil, cart), vip.String())
	d := NewDemand(workloads.New())
	client, err := xds.NewClient(xds.Config{
		Address: server.URL(), NodeID: "ztunnel~1.1.1.1~z.culvert-system~culvert-system.svc.cluster.local",
		Types: []xds.Subscription{d.Addresses()}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Attach(client)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return d, server
}

// decide looks an address up until nothing is missing, as the proxies do.
func decide(t *testing.T, d *Demand, addr mesh.NetAddr) *mesh.Service {
	t.Helper()
	for range 3 {
		v := d.View()
		svc := v.ServiceByVIP(addr, "shop")
		if v.Missing() == nil {
			return svc
		}
		if err := d.Known(t.Context(), v.Missing()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("still missing after it was asked for three times")
	return nil
}

func TestDemandLearns(t *testing.T) {
	t.Parallel()
	d, server := demanding(t)
	if svc := decide(t, d, vip); svc == nil || svc.Name != "cart" {
		t.Fatalf("service %v", svc)
	}
	outside := mesh.NetAddr{Addr: netip.MustParseAddr("192.0.2.1")}
	if svc := decide(t, d, outside); svc != nil {
		t.Fatalf("an address outside is %v", svc)
	}
	if v := d.View(); v.ServiceByVIP(outside, "shop") != nil || v.Missing() != nil {
		t.Error("an absent name is asked for twice")
	}
	// What was absent may come.
	late := &mesh.Service{Name: "late", Namespace: "shop", Hostname: "late.shop.svc.cluster.local", VIPs: []mesh.NetAddr{outside}}
	server.Set(workload.TypeURL, "shop/"+late.Hostname, "1", address(nil, late), outside.String())
	if err := d.store.Wait(t.Context(), func(v workloads.View) bool { return v.ServiceByVIP(outside, "shop") != nil }); err != nil {
		t.Fatal(err)
	}
}

// While the control plane is away what is known serves, and what is not is waited
// for as long as the caller likes; it is asked for again when the plane is back.
func TestDemandAway(t *testing.T) {
	t.Parallel()
	d, server := demanding(t)
	decide(t, d, vip)
	server.Stop()
	if svc := decide(t, d, vip); svc == nil {
		t.Fatal("what was known is not any more")
	}
	gone := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	name := (mesh.NetAddr{Addr: netip.MustParseAddr("192.0.2.9")}).String()
	if err := d.Known(ctx, []string{name}); !errors.Is(err, gone) {
		t.Fatalf("error %v", err)
	}
	server.Start()
	if err := d.Known(t.Context(), []string{name}); err != nil {
		t.Fatal(err)
	}
}

// Whoever dials many addresses outside the mesh does not make us remember them
// all, and what means something is never forgotten.
func TestDemandForgets(t *testing.T) {
	t.Parallel()
	d := NewDemand(workloads.New())
	d.maxAbsent = 10
	asked := map[string]bool{}
	d.subscribe = func(names ...string) {
		for _, n := range names {
			asked[n] = true
		}
	}
	d.unsubscribe = func(names ...string) {
		for _, n := range names {
			delete(asked, n)
		}
	}
	d.ask([]string{"there"})
	d.answer([]xds.Resource{{Name: "uid", Aliases: []string{"there"}}}, nil)
	for i := range 100 {
		name := fmt.Sprintf("/192.0.2.%d", i)
		d.ask([]string{name})
		d.answer(nil, []string{name})
		if i%3 == 0 { // comes and goes
			d.answer([]xds.Resource{{Name: name}}, nil)
			d.answer(nil, []string{name})
		}
	}
	if len(asked) != 11 || len(d.asked) != 11 || len(d.absent) != 10 || !asked["there"] || !asked["/192.0.2.99"] {
		t.Errorf("%d subscribed, %d remembered, %d absent: %v", len(asked), len(d.asked), len(d.absent), asked)
	}
	if v := d.View(); d.unanswered("/192.0.2.0") == false || slices.Contains(v.Missing(), "there") {
		t.Error("a forgotten name must be asked for again, a known one not")
	}
}
