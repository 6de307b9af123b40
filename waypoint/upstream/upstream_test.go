package upstream

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
)

// fakeTunnel is a tunnel's stream that nothing is read from or written to.
type fakeTunnel struct {
	hbone.Stream
	leaving, closed atomic.Bool
}

func (f *fakeTunnel) Leaving() bool { return f.leaving.Load() }
func (f *fakeTunnel) Close() error  { f.closed.Store(true); return nil }

// tunnels opens fakes.
type tunnels struct{ all []*fakeTunnel }

func (o *tunnels) Open(context.Context, hbone.Peer, hbone.Request) (hbone.Stream, *hbone.Response, error) {
	f := new(fakeTunnel)
	o.all = append(o.all, f)
	return f, &hbone.Response{Status: 200}, nil
}

// TestYield holds that no idle connection stays in a tunnel whose peer is about to
// end, whether it rests already or comes to rest, and that none is used again.
func TestYield(t *testing.T) {
	t.Parallel()
	var o tunnels
	p := NewPool(Config{Tunnels: &o})
	ep := &cluster.Endpoint{Addr: netip.MustParseAddrPort("10.0.0.1:80"), HBONE: true}
	get := func() *Conn {
		t.Helper()
		c, err := p.Get(t.Context(), ep, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	resting, busy, other := get(), get(), get()
	p.Put(resting)
	p.Put(other)
	o.all[0].leaving.Store(true)
	o.all[1].leaving.Store(true)
	p.Yield()
	if !o.all[0].closed.Load() || o.all[1].closed.Load() || o.all[2].closed.Load() {
		t.Error("want the resting connection closed, and neither the busy one nor that in another tunnel")
	}
	p.Put(busy)
	if !o.all[1].closed.Load() {
		t.Error("a connection came to rest in a tunnel that ends")
	}
	if c := get(); c != other {
		t.Error("want the connection whose tunnel goes on")
	}
	p.Put(other)
	o.all[2].leaving.Store(true) // and nobody has told the pool yet
	if c := get(); c == other {
		t.Error("a connection was used in a tunnel that ends")
	}
}
