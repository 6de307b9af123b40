package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// TestSuccessor: while one socket stops and another is there, whether it is one of
// its own on the same address or the very same, every datagram is answered.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			t.Parallel()
			var own *netns.NS
			listen := func(at netip.AddrPort) *net.UDPConn {
				c, err := own.ListenPacket(t.Context(), at, netns.ListenOptions{ReusePort: true})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			first := listen(netip.MustParseAddrPort("127.0.0.1:0"))
			at := addrPort(first.LocalAddr())
			r := startResolver(t, options{})
			old := serveOn(t, r, first)
			var wg sync.WaitGroup
			var answered atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			for range 4 {
				wg.Go(func() { askFor(t, ctx, at, &answered) })
			}
			for range 5 {
				n := answered.Load()
				until(t, "more answers", func() bool { return answered.Load() > n+20 })
				c := first
				if !shared {
					c = listen(at)
				} else if f, err := first.File(); err != nil {
					t.Fatal(err)
				} else if pc, err := net.FilePacketConn(f); err != nil {
					t.Fatal(err)
				} else {
					f.Close()
					c = pc.(*net.UDPConn)
				}
				next := serveOn(t, r, c)
				old.u.Stop(shared)
				<-old.done
				n = answered.Load() // it is open still, as while its last answers are awaited
				until(t, "more answers", func() bool { return answered.Load() > n+20 })
				old.u.Close()
				old, first = next, c
			}
			cancel()
			wg.Wait()
		})
	}
}

// served is a socket that is being served.
type served struct {
	u    *UDP
	done chan struct{}
}

func serveOn(t *testing.T, r *resolver, c *net.UDPConn) served {
	t.Helper()
	u, err := NewUDP(c)
	if err != nil {
		t.Fatal(err)
	}
	s := served{u, make(chan struct{})}
	go func() { defer close(s.done); r.ServeUDP(u) }()
	t.Cleanup(func() { u.Close(); <-s.done })
	return s
}

// askFor asks one question after the other, each from a port of its own.
func askFor(t *testing.T, ctx context.Context, at netip.AddrPort, answered *atomic.Int64) {
	raw, _ := question("cart", dns.TypeA).Pack()
	buf := make([]byte, 512)
	for ctx.Err() == nil {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Error(err)
			return
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write(raw)
		_, err = c.Read(buf)
		c.Close()
		if err != nil {
			t.Errorf("a question got no answer: %v", err)
			return
		}
		answered.Add(1)
	}
}

// TestDrain: queries that wait get their answers, idle connections end.
func TestDrain(t *testing.T) {
	t.Parallel()
	r, _, release := startHeld(t)
	idle, err := net.Dial("tcp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	fresh, err := dns.DialTimeout("tcp", r.addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	until(t, "they are accepted", func() bool { return r.value(t, "culvert_ztunnel_dns_connections", "") == 2 })
	got := make(chan int, 2)
	for _, tcp := range []bool{false, true} {
		go func() { got <- len(r.ask(t, tcp, question("a.test", dns.TypeA)).Answer) }()
	}
	until(t, "both wait", func() bool { return r.value(t, "culvert_ztunnel_dns_waiting", "") == 2 })
	drained := make(chan struct{})
	go func() { defer close(drained); r.Drain(t.Context()) }()
	until(t, "it drains", r.drains.Load)
	if err := fresh.WriteMsg(question("b.test", dns.TypeA)); err != nil {
		t.Error(err)
	}
	idle.SetDeadline(time.Now().Add(patience))
	if _, err := idle.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the idle connection: %v", err)
	}
	close(release)
	for range 2 {
		if n := <-got; n != 1 {
			t.Errorf("%d answers", n)
		}
	}
	fresh.SetDeadline(time.Now().Add(patience))
	if answer, err := fresh.ReadMsg(); err != nil || len(answer.Answer) != 1 {
		t.Errorf("who had just connected: %v, %v", answer, err)
	}
	<-drained
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// BenchmarkServe is queries per second through real sockets, a name of the mesh, an
// answer that is kept, and one that is fetched each time.
func BenchmarkServe(b *testing.B) {
	u := startUpstream(b, says(0, "@ 0 IN A 192.0.2.1"))
	kept := startUpstream(b, says(0, "@ 300 IN A 192.0.2.1"))
	for _, c := range []struct {
		what, name string
		servers    []netip.AddrPort
	}{
		{"mesh", "cart.shop.svc.cluster.local", nil},
		{"kept", "a.test", []netip.AddrPort{kept.addr}},
		{"forwarded", "a.test", []netip.AddrPort{u.addr}},
	} {
		b.Run(c.what, func(b *testing.B) {
			r := startResolver(b, options{servers: c.servers})
			raw, _ := question(c.name, dns.TypeA).Pack()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("udp", r.addr.String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				buf := make([]byte, 512)
				for pb.Next() {
					conn.Write(raw)
					if _, err := conn.Read(buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}
