package redirect

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// captured is one connection that came to a proxy's port.
type captured struct {
	port uint16 // 15001, 15006 or 15008
	dst  netip.AddrPort
	from netip.Addr
}

// proxy stands where a ztunnel stands: it takes what the rules bring, and sends
// it on, marked, to where it was going.
type proxy struct {
	ns   *netns.NS
	seen chan captured
	vips map[netip.AddrPort]netip.AddrPort // services, and where their pod is
	wg   sync.WaitGroup
}

func startProxy(t *testing.T, ns *netns.NS) *proxy {
	t.Helper()
	return startProxyFor(t, ns, nil)
}

func startProxyFor(t *testing.T, ns *netns.NS, vips map[netip.AddrPort]netip.AddrPort) *proxy {
	t.Helper()
	p := &proxy{ns: ns, seen: make(chan captured, 1000), vips: vips}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); p.wg.Wait() })
	for _, port := range []uint16{mesh.PortOutbound, mesh.PortPlaintext, mesh.PortHBONE} {
		l, err := ns.Listen(ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.ListenOptions{Mark: mesh.MarkProxy, Transparent: true})
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { l.Close() })
		p.wg.Go(func() { p.accept(ctx, l, port) })
	}
	return p
}

func (p *proxy) accept(ctx context.Context, l *net.TCPListener, port uint16) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.carry(ctx, c, port) })
	}
}

func (p *proxy) carry(ctx context.Context, c *net.TCPConn, port uint16) {
	defer c.Close()
	dst, err := netns.OriginalDst(c)
	if err != nil {
		return
	}
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	p.seen <- captured{port, dst, from}
	if port == mesh.PortHBONE {
		return
	}
	opt := netns.DialOptions{Mark: mesh.MarkProxy}
	if port == mesh.PortPlaintext && from != dst.Addr() {
		opt.Source = from
	}
	if pod, ok := p.vips[dst]; ok {
		dst = pod
	}
	up, err := p.ns.Dial(ctx, dst, opt)
	if err != nil {
		return
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { c.Close(); up.Close() })
	defer stop()
	p.wg.Go(func() { io.Copy(up, c); up.CloseWrite() })
	io.Copy(c, up)
	c.CloseWrite()
}

// none fails the test when the proxy has taken anything.
func (p *proxy) none(t *testing.T, what string) {
	t.Helper()
	select {
	case c := <-p.seen:
		t.Errorf("%s: captured on %d, going to %s", what, c.port, c.dst)
	default:
	}
}

func (p *proxy) one(t *testing.T, want captured) {
	t.Helper()
	select {
	case got := <-p.seen:
		if got != want {
			t.Errorf("captured %+v, want %+v", got, want)
		}
	default:
		t.Errorf("not captured, want %+v", want)
	}
}

// echo is a program of a pod: it says who called, then sends back what it gets.
func echo(t *testing.T, ns *netns.NS, port uint16) {
	t.Helper()
	l, err := ns.Listen(context.Background(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				io.Copy(c, c)
			})
		}
	})
}

// call opens a connection and returns what the echo program says of the caller.
func call(t *testing.T, ns *netns.NS, to netip.AddrPort) (*net.TCPConn, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := ns.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		t.Fatalf("call %s: %v", to, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	line := make([]byte, 0, 64)
	for b := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; line = append(line, b[0]) {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("call %s: %v", to, err)
		}
	}
	return c, string(line[:len(line)-1])
}

func pingPong(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("write on an open connection: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read on an open connection: %q, %v, want %q", got, err, text)
	}
}

func apply(t *testing.T, ns *netns.NS, rs Ruleset) {
	t.Helper()
	if err := Apply(ns, rs); err != nil {
		t.Fatal(err)
	}
}

func TestTrafficBetweenPods(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	a, b := node.Pod(t), node.Pod(t)
	pa, pb := startProxy(t, a.NS), startProxy(t, b.NS)
	echo(t, b.NS, 8080)
	echo(t, a.NS, 8081)
	for range 2 { // applying twice changes nothing
		apply(t, a.NS, Pod(Options{IPv6: true}))
		apply(t, b.NS, Pod(Options{IPv6: true}))
	}
	for _, ip := range []struct{ a, b netip.Addr }{{a.IP4, b.IP4}, {a.IP6, b.IP6}} {
		to := netip.AddrPortFrom(ip.b, 8080)
		c, caller := call(t, a.NS, to)
		if caller != ip.a.String() {
			t.Errorf("the program at %s was called by %s, want the pod's own address %s", to, caller, ip.a)
		}
		pingPong(t, c, "through two proxies")
		pa.one(t, captured{mesh.PortOutbound, to, ip.a})
		pb.one(t, captured{mesh.PortPlaintext, to, ip.a})

		_, caller = call(t, a.NS, netip.AddrPortFrom(ip.a, 8081))
		pa.none(t, "a pod that calls its own address")
		if caller != ip.a.String() {
			t.Errorf("called by %s", caller)
		}
	}
	for _, lo := range []string{"127.0.0.1", "127.0.0.9", "::1"} {
		call(t, a.NS, netip.AddrPortFrom(netip.MustParseAddr(lo), 8081))
		pa.none(t, "loopback")
	}
}

// A service's address, also one that leads back to the pod itself, is captured
// like any other; the tunnel's port is not.
func TestServiceAddressAndTunnelPort(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	a, b := node.Pod(t), node.Pod(t)
	pa, pb := startProxy(t, a.NS), startProxy(t, b.NS)
	apply(t, a.NS, Pod(Options{IPv6: true}))
	apply(t, b.NS, Pod(Options{IPv6: true}))
	for _, vip := range []string{"10.96.0.7:80", "[fd00:96::7]:80"} {
		c, err := a.NS.Dial(t.Context(), netip.MustParseAddrPort(vip), netns.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		got := <-pa.seen
		if got.port != mesh.PortOutbound || got.dst != netip.MustParseAddrPort(vip) {
			t.Errorf("captured %+v, want %s on 15001", got, vip)
		}
	}
	for _, ip := range []netip.Addr{b.IP4, b.IP6} {
		c, err := a.NS.Dial(t.Context(), netip.AddrPortFrom(ip, mesh.PortHBONE), netns.DialOptions{Mark: mesh.MarkProxy})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := <-pb.seen; got.port != mesh.PortHBONE || got.dst != netip.AddrPortFrom(ip, mesh.PortHBONE) {
			t.Errorf("captured %+v, want 15008 directly", got)
		}
	}
}

// A pod that calls its own service is captured once, on the way out, and the
// proxy's connection back to the pod is nobody's loop.
func TestPodCallsItsOwnService(t *testing.T) {
	t.Parallel()
	pod := netnstest.NewNode(t).Pod(t)
	vip4, vip6 := netip.MustParseAddrPort("10.96.0.7:80"), netip.MustParseAddrPort("[fd00:96::7]:80")
	p := startProxyFor(t, pod.NS, map[netip.AddrPort]netip.AddrPort{
		vip4: netip.AddrPortFrom(pod.IP4, 8080), vip6: netip.AddrPortFrom(pod.IP6, 8080)})
	echo(t, pod.NS, 8080)
	apply(t, pod.NS, Pod(Options{IPv6: true}))
	for vip, ip := range map[netip.AddrPort]netip.Addr{vip4: pod.IP4, vip6: pod.IP6} {
		c, caller := call(t, pod.NS, vip)
		pingPong(t, c, "to myself")
		if caller != ip.String() {
			t.Errorf("called by %s, want %s", caller, ip)
		}
		p.one(t, captured{mesh.PortOutbound, vip, ip})
		p.none(t, "the proxy's own connection")
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	pod, other := node.Pod(t), node.Pod(t)
	p := startProxy(t, pod.NS)
	echo(t, pod.NS, 8080)
	echo(t, pod.NS, 8081)
	apply(t, pod.NS, Pod(Options{IPv6: true, Probes: []Probe{
		{Source: node.IP4, Ports: []uint16{8080}}, {Source: node.IP6, Ports: []uint16{8080}}}}))
	for _, ip := range []struct{ pod, node, other netip.Addr }{{pod.IP4, node.IP4, other.IP4}, {pod.IP6, node.IP6, other.IP6}} {
		probed, private := netip.AddrPortFrom(ip.pod, 8080), netip.AddrPortFrom(ip.pod, 8081)
		call(t, node.NS, probed)
		p.none(t, "a probe from the node")
		call(t, node.NS, private)
		p.one(t, captured{mesh.PortPlaintext, private, ip.node})
		call(t, other.NS, probed)
		p.one(t, captured{mesh.PortPlaintext, probed, ip.other})
	}
}

func TestBypassInbound(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	a, b := node.Pod(t), node.Pod(t)
	p := startProxy(t, b.NS)
	echo(t, a.NS, 8080)
	echo(t, b.NS, 8080)
	apply(t, b.NS, Pod(Options{IPv6: true, BypassInbound: true}))
	call(t, a.NS, netip.AddrPortFrom(b.IP4, 8080))
	p.none(t, "inbound traffic with bypass")
	call(t, b.NS, netip.AddrPortFrom(a.IP4, 8080))
	p.one(t, captured{mesh.PortOutbound, netip.AddrPortFrom(a.IP4, 8080), b.IP4})
}

func TestVirtualInterface(t *testing.T) {
	t.Parallel()
	pod, vm := netnstest.Pair(t) // the pod's eth0 is where its machine lives
	p := startProxy(t, pod)
	apply(t, pod, Pod(Options{VirtualInterfaces: []string{"eth0"}}))
	to := netip.AddrPortFrom(netnstest.PairA4.Addr(), 8080)
	c, err := vm.Dial(t.Context(), to, netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := <-p.seen; got.port != mesh.PortOutbound || got.dst != to {
		t.Errorf("captured %+v, want %s on 15001", got, to)
	}
}

// Connections live through enrolment, through a change of the rules and through
// removal, in both directions, with bytes flowing all the time.
func TestOpenConnectionsSurvive(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	pod, peer := node.Pod(t), node.Pod(t)
	echo(t, pod.NS, 8080)
	echo(t, peer.NS, 8080)
	p := startProxy(t, pod.NS)

	older := openStreams(t, pod, peer, 8)
	apply(t, pod.NS, Pod(Options{IPv6: true}))
	older.check(t, "after enrolment")
	p.none(t, "a connection older than the rules")

	younger := openStreams(t, pod, peer, 8)
	for range 16 {
		if got := <-p.seen; got.port == mesh.PortHBONE {
			t.Errorf("captured %+v", got)
		}
	}
	apply(t, pod.NS, Pod(Options{IPv6: true, Probes: []Probe{{Source: node.IP4, Ports: []uint16{1}}}}))
	younger.check(t, "after a change of the rules")

	if err := Drain(pod.NS, true); err != nil {
		t.Fatal(err)
	}
	older.check(t, "while draining")
	younger.check(t, "while draining")
	latest := openStreams(t, pod, peer, 2)
	p.none(t, "a connection of a pod that left the mesh")
	if n, err := Redirected(pod.NS); err != nil || n < 16 {
		t.Fatalf("redirected connections: %d, %v, want 16 or more", n, err)
	}
	younger.close()
	awaitNoneRedirected(t, pod.NS)
	if err := Remove(pod.NS); err != nil {
		t.Fatal(err)
	}
	older.check(t, "after removal")
	latest.check(t, "after removal")
	if err := Remove(pod.NS); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	if on, err := Applied(pod.NS); on || err != nil {
		t.Errorf("applied after removal: %v, %v", on, err)
	}
}

func awaitNoneRedirected(t *testing.T, ns *netns.NS) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		n, err := Redirected(ns)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still redirected", n)
		}
	}
}

// streams are connections on which bytes flow until close.
type streams struct {
	all []*stream
	wg  sync.WaitGroup
}

type stream struct {
	conn   *net.TCPConn
	rounds atomic.Int64
	moved  chan struct{} // holds one token when rounds has grown
	failed chan error
}

// openStreams opens n connections from or to the pod for each family.
func openStreams(t *testing.T, pod, peer *netnstest.Pod, n int) *streams {
	t.Helper()
	s := &streams{}
	for i := range n {
		from, to := pod, peer
		if i%2 == 0 {
			from, to = peer, pod
		}
		for _, ip := range []netip.Addr{to.IP4, to.IP6} {
			c, _ := call(t, from.NS, netip.AddrPortFrom(ip, 8080))
			st := &stream{conn: c, moved: make(chan struct{}, 1), failed: make(chan error, 1)}
			s.all = append(s.all, st)
			s.wg.Go(st.flow)
		}
	}
	t.Cleanup(s.close)
	return s
}

func (s *stream) flow() {
	msg, got := []byte("0123456789abcdef"), make([]byte, 16)
	for {
		_, werr := s.conn.Write(msg)
		_, rerr := io.ReadFull(s.conn, got)
		if werr != nil || rerr != nil || !bytes.Equal(msg, got) {
			s.failed <- fmt.Errorf("%s -> %s: write %v, read %v %q", s.conn.LocalAddr(), s.conn.RemoteAddr(), werr, rerr, got)
			return
		}
		s.rounds.Add(1)
		select {
		case s.moved <- struct{}{}:
		default:
		}
	}
}

// check waits until bytes have gone round on every stream many times more.
func (s *streams) check(t *testing.T, when string) {
	t.Helper()
	for _, st := range s.all {
		st.conn.SetDeadline(time.Now().Add(2 * time.Minute))
		for want := st.rounds.Load() + 20; st.rounds.Load() < want; {
			select {
			case <-st.moved:
			case err := <-st.failed:
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
}

func (s *streams) close() {
	for _, st := range s.all {
		st.conn.Close()
	}
	s.wg.Wait()
}

func TestSelfTest(t *testing.T) {
	t.Parallel()
	netnstest.RequireRoot(t)
	if err := SelfTest(""); err != nil {
		t.Fatal(err)
	}
}
