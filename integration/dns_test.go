package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// nameServer is a pod outside the mesh that answers every A query with an address
// of its own choice.
type nameServer struct {
	*pod
	says  string
	seen  sync.Map // addresses that asked
	quiet atomic.Bool
}

func (f *field) nameServer(name, says string) *nameServer {
	f.t.Helper()
	s := &nameServer{pod: f.outside(name), says: says}
	for _, a := range []netip.Addr{s.IP4, s.IP6} {
		at := netip.AddrPortFrom(a, 53)
		udp, err := s.NS.ListenPacket(f.t.Context(), at, netns.ListenOptions{})
		if err != nil {
			f.t.Fatal(err)
		}
		tcp, err := s.NS.Listen(f.t.Context(), at, netns.ListenOptions{})
		if err != nil {
			f.t.Fatal(err)
		}
		for _, srv := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
			done := make(chan struct{})
			go func() { defer close(done); srv.ActivateAndServe() }()
			f.t.Cleanup(func() { udp.Close(); tcp.Close(); <-done })
		}
	}
	return s
}

// ServeDNS implements dns.Handler.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
	s.seen.Store(host, true)
	if s.quiet.Load() {
		return
	}
	m := new(dns.Msg).SetReply(q)
	rr, _ := dns.NewRR(q.Question[0].Name + " 0 IN A " + s.says)
	m.Answer = []dns.RR{rr}
	w.WriteMsg(m)
}

// captureDNS redirects the pod's queries to its ztunnel.
func (p *pod) captureDNS(t testing.TB) {
	t.Helper()
	if err := redirect.Apply(p.NS, redirect.Pod(redirect.Options{IPv6: p.IP6.IsValid(), DNSCapture: true})); err != nil {
		t.Fatal(err)
	}
}

// query asks a server from inside the pod, as a program there would.
func (p *pod) query(ctx context.Context, network string, server netip.Addr, q *dns.Msg) (*dns.Msg, error) {
	at := netip.AddrPortFrom(server, 53)
	c := &dns.Conn{}
	var err error
	if network == "tcp" {
		c.Conn, err = p.NS.Dial(ctx, at, netns.DialOptions{})
	} else {
		c.Conn, err = p.NS.DialPacket(ctx, at, netns.DialOptions{})
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

// resolve returns the first address of a name, or what went wrong.
func (p *pod) resolve(ctx context.Context, network string, server netip.Addr, name string) string {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	m, err := p.query(ctx, network, server, q)
	switch {
	case err != nil:
		return err.Error()
	case m.Rcode != 0 || len(m.Answer) == 0 || m.Id != q.Id:
		return fmt.Sprint(m)
	}
	return strings.TrimPrefix(m.Answer[0].String(), m.Answer[0].Header().String())
}

// TestDNS runs a real ztunnel between a pod's programs and two name servers that
// disagree.
func TestDNS(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client := f.pod("client", "node-1")
	client.captureDNS(t)
	bare := f.pod("bare", "node-1")
	bare.captureDNS(t)
	err := bare.NS.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0o644) })
	if err != nil {
		t.Fatal(err)
	}
	f.service("echo", "10.99.0.1", "{80: 7000}")
	one, two := f.nameServer("one", "192.0.2.1"), f.nameServer("two", "192.0.2.2")
	z := f.ztunnel("node-1", f.agent("node-1", client, bare), nil)

	for _, network := range []string{"udp", "tcp"} {
		for _, s := range []*nameServer{one, two} {
			for _, addr := range []netip.Addr{s.IP4, s.IP6} {
				if got := client.resolve(t.Context(), network, addr, "echo.default.svc.cluster.local"); got != "10.99.0.1" {
					t.Errorf("a name of the mesh, asked of %s over %s: %s", addr, network, got)
				}
				if got := client.resolve(t.Context(), network, addr, "name.example"); got != s.says {
					t.Errorf("an outside name, asked of %s over %s: %s, want %s", addr, network, got, s.says)
				}
				if _, ok := s.seen.Load(map[bool]string{true: client.IP4.String(), false: client.IP6.String()}[addr.Is4()]); !ok {
					t.Errorf("%s was not asked from the pod's own address", addr)
				}
			}
		}
		if got := bare.resolve(t.Context(), network, one.IP4, "echo"); got != "10.99.0.1" {
			t.Errorf("in a pod without ::1, over %s: %s", network, got)
		}
	}
	for name, want := range map[string]string{"echo.default.svc.cluster.local": "[10.99.0.1]", "other.example": "[192.0.2.1]"} {
		if got := client.lookup(t, one.IP4, name); got != want {
			t.Errorf("Go's resolver says %s, want %s", got, want)
		}
	}
	if n := z.metric("istio_dns_requests_total", `source_canonical_service="client"`, `request_query_type="a"`, `request_protocol="udp"`); n < 9 {
		t.Errorf("%v requests counted", n)
	}
	t.Run("flood", func(t *testing.T) { flood(t, z, client, one) })
	t.Run("successor", func(t *testing.T) { successor(t, f, z, client, two) })
}

// lookup asks Go's own resolver.
func (p *pod) lookup(t *testing.T, server netip.Addr, name string) string {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		at := netip.AddrPortFrom(server, 53)
		if strings.HasPrefix(network, "tcp") {
			return p.NS.Dial(ctx, at, netns.DialOptions{})
		}
		return p.NS.DialPacket(ctx, at, netns.DialOptions{})
	}}
	addrs, err := r.LookupNetIP(t.Context(), "ip4", name+".")
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(addrs)
}

// flood asks a silent server more than ztunnel will wait for. Names of the mesh are
// answered all the while, the rest is refused and counted, and nothing stays.
func flood(t *testing.T, z *ztunnel, client *pod, server *nameServer) {
	goroutines, descriptors := z.goroutines(), z.descriptors()
	server.quiet.Store(true)
	defer server.quiet.Store(false)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			c, err := client.NS.DialPacket(t.Context(), netip.AddrPortFrom(server.IP4, 53), netns.DialOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for i := range 2000 {
				raw, _ := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d-%d.example.", worker, i), dns.TypeA).Pack()
				c.Write(raw)
			}
		})
	}
	wg.Wait()
	for range 20 {
		if got := client.resolve(t.Context(), "tcp", server.IP4, "echo"); got != "10.99.0.1" {
			t.Errorf("meanwhile a name of the mesh is %s", got)
		}
	}
	if n := z.metric("culvert_ztunnel_dns_refused_total", `reason="too many queries wait"`); n == 0 {
		t.Error("nothing was refused")
	}
	z.until("nothing waits", func() bool {
		return strings.Contains(z.get("http://127.0.0.1:15020/metrics"), "culvert_ztunnel_dns_waiting 0\n")
	})
	z.until("everything is given back", func() bool {
		return z.goroutines() <= goroutines+4 && z.descriptors() <= descriptors+4
	})
}

// successor replaces the ztunnel while names are asked for: every question is
// answered, by one or the other.
func successor(t *testing.T, f *field, z *ztunnel, client *pod, server *nameServer) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var good atomic.Int64
	var wg sync.WaitGroup
	for _, c := range []struct{ network, name, want string }{
		{"udp", "echo", "10.99.0.1"}, {"udp", "a.example", server.says}, {"tcp", "a.example", server.says},
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				got := client.resolve(context.WithoutCancel(ctx), c.network, server.IP4, c.name)
				if got != c.want {
					t.Errorf("%s over %s: %s", c.name, c.network, got)
					return
				}
				good.Add(1)
			}
		})
	}
	wantMore(z, &good)
	next := f.ztunnel("node-1", f.agent("node-1b", client), z.ns)
	next.wantLog("pod is in the mesh.*default/client") // the old one's readiness is asked on the same port
	wantMore(next, &good)
	if err := z.stop(); err != nil {
		t.Error(err)
	}
	wantMore(next, &good)
	cancel()
	wg.Wait()
	if next.metric("istio_dns_requests_total", `source_canonical_service="client"`) == 0 {
		t.Error("the successor was never asked")
	}
}

// BenchmarkDNS is queries a second from a pod's programs: of the name server without
// a mesh, and through ztunnel, of names that are its own and of names that it asks
// the same server for each time.
func BenchmarkDNS(b *testing.B) {
	f := newField(b)
	stranger, client := f.outside("stranger"), f.pod("client", "node-1")
	client.captureDNS(b)
	f.service("echo", "10.99.0.1", "{80: 7000}")
	server := f.nameServer("server", "192.0.2.1")
	f.ztunnel("node-1", f.agent("node-1", client), nil)
	for _, c := range []struct {
		what, name string
		from       *pod
	}{
		{"without", ".example.", stranger},
		{"mesh", "echo.default.svc.cluster.local.", client},
		{"forwarded", ".example.", client},
	} {
		b.Run(c.what, func(b *testing.B) {
			var askers atomic.Int64
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := c.from.NS.DialPacket(b.Context(), netip.AddrPortFrom(server.IP4, 53), netns.DialOptions{})
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				name := c.name
				if strings.HasPrefix(name, ".") { // each asks for its own
					name = fmt.Sprintf("n%d%s", askers.Add(1), name)
				}
				raw, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
				if err != nil {
					b.Error(err)
					return
				}
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
