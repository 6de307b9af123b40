package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func listen(t *testing.T, ns *netns.NS, addr string, opt netns.ListenOptions) *net.TCPListener {
	t.Helper()
	l, err := ns.Listen(t.Context(), netip.MustParseAddrPort(addr), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func port(l *net.TCPListener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

func dial(t *testing.T, ns *netns.NS, to netip.AddrPort, opt netns.DialOptions) *net.TCPConn {
	t.Helper()
	c, err := ns.Dial(t.Context(), to, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t *testing.T, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func option(t *testing.T, c *net.TCPConn, level, name int) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if cerr := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return v
}

func TestDialAcrossNamespaces(t *testing.T) {
	t.Parallel()
	a, b := netnstest.Pair(t)
	l := listen(t, b, "[::]:0", netns.ListenOptions{Mark: 0x539})
	for _, to := range []netip.Addr{netnstest.PairB4.Addr(), netnstest.PairB6.Addr()} {
		c := dial(t, a, netip.AddrPortFrom(to, port(l)), netns.DialOptions{Mark: 0x539})
		s := accept(t, l)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "hello" {
			t.Errorf("to %s: %q, %v", to, got, err)
		}
		if dst, err := netns.OriginalDst(s); err != nil || dst != netip.AddrPortFrom(to, port(l)) {
			t.Errorf("original destination without a redirect: %v, %v", dst, err)
		}
		for _, o := range []struct{ level, name, want int }{
			{unix.SOL_SOCKET, unix.SO_MARK, 0x539},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 180},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 180},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		} {
			if got := option(t, c, o.level, o.name); got != o.want {
				t.Errorf("dialled socket: option %d/%d is %d, want %d", o.level, o.name, got, o.want)
			}
			if err := netns.Tune(s); err != nil {
				t.Fatal(err)
			}
			if got := option(t, s, o.level, o.name); got != o.want {
				t.Errorf("accepted socket: option %d/%d is %d, want %d", o.level, o.name, got, o.want)
			}
		}
	}
}

// The address that a proxied program sees may be one that is nowhere local.
func TestDialFromForeignSource(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	l := listen(t, ns, "[::]:0", netns.ListenOptions{Transparent: true})
	for _, c := range []struct{ source, to string }{{"127.9.8.7", "127.0.0.1"}, {"::ffff:127.9.8.7", "127.0.0.1"}, {"::1", "::1"}} {
		src := netip.MustParseAddr(c.source)
		for range 3 { // one source may have many connections
			dial(t, ns, netip.AddrPortFrom(netip.MustParseAddr(c.to), port(l)), netns.DialOptions{Source: src})
			if got := accept(t, l).RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != src.Unmap() {
				t.Errorf("connection from %s, want %s", got, src)
			}
		}
	}
	_, err := ns.Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l)), netns.DialOptions{Source: netip.MustParseAddr("::1")})
	if err == nil {
		t.Error("a source of another family was taken")
	}
	// Without a route back the handshake cannot end, but the segment leaves.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ns.Dial(ctx, netip.MustParseAddrPort("127.0.0.1:1"), netns.DialOptions{Source: netip.MustParseAddr("192.0.2.1")}); !errors.Is(err, context.Canceled) {
		t.Errorf("a dial that was given up before: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	a, b := netnstest.Pair(t)
	l := listen(t, b, "10.77.0.2:0", netns.ListenOptions{})
	closed := port(l)
	l.Close()
	for _, c := range []struct {
		to   string
		want error
	}{
		{netip.AddrPortFrom(netnstest.PairB4.Addr(), closed).String(), unix.ECONNREFUSED},
		{"[fd77::2]:1", unix.ECONNREFUSED},
		{"127.0.0.1:1", unix.ECONNREFUSED},
		{"192.0.2.1:1", unix.ENETUNREACH},
	} {
		if _, err := a.Dial(t.Context(), netip.MustParseAddrPort(c.to), netns.DialOptions{}); !errors.Is(err, c.want) {
			t.Errorf("dial %s: %v, want %v", c.to, err, c.want)
		}
	}
}

// A handshake that nobody answers ends when its context does, and leaves nothing.
func TestDialGivesUpWithContext(t *testing.T) {
	ns, _ := netnstest.Pair(t)
	silent := netip.MustParseAddrPort("10.77.0.99:1") // an address of the link that nobody has
	before := netnstest.OpenFDs(t)
	cause := errors.New("the reason")
	for range 20 {
		ctx, cancel := context.WithCancelCause(t.Context())
		result := make(chan error)
		go func() {
			_, err := ns.Dial(ctx, silent, netns.DialOptions{})
			result <- err
		}()
		cancel(cause)
		if err := <-result; !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
			t.Errorf("dial: %v, want %v", err, cause)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := ns.Dial(ctx, silent, netns.DialOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	if after := netnstest.OpenFDs(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// Two listeners share a port while one process replaces another.
func TestListenReusePort(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	l := listen(t, ns, "[::]:0", netns.ListenOptions{ReusePort: true})
	again := netip.AddrPortFrom(netip.IPv6Unspecified(), port(l))
	listen(t, ns, again.String(), netns.ListenOptions{ReusePort: true})
	if _, err := ns.Listen(t.Context(), again, netns.ListenOptions{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening without ReusePort: %v", err)
	}
	only := listen(t, ns, "[::]:0", netns.ListenOptions{V6Only: true})
	if _, err := ns.Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(only)), netns.DialOptions{}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("IPv4 to an IPv6-only listener: %v", err)
	}
}

func TestListenPacket(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		a, err := ns.ListenPacket(t.Context(), netip.MustParseAddrPort(addr), netns.ListenOptions{Mark: 0x539})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := ns.ListenPacket(t.Context(), netip.MustParseAddrPort(addr), netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, err := b.WriteTo([]byte("hello"), a.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		n, from, err := a.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "hello" || from.String() != b.LocalAddr().String() {
			t.Errorf("%q from %v, %v", buf[:n], from, err)
		}
	}
}

func TestProcessNamespace(t *testing.T) {
	t.Parallel()
	var own *netns.NS
	l := listen(t, own, "127.0.0.1:0", netns.ListenOptions{})
	c := dial(t, own, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l)), netns.DialOptions{})
	if accept(t, l).RemoteAddr().String() != c.LocalAddr().String() {
		t.Error("not the same connection")
	}
}

func BenchmarkDial(b *testing.B) {
	ns := netnstest.New(b)
	l, err := ns.Listen(b.Context(), netip.MustParseAddrPort("127.0.0.1:0"), netns.ListenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	for b.Loop() {
		c, err := ns.Dial(b.Context(), to, netns.DialOptions{})
		if err != nil {
			b.Fatal(err)
		}
		s, err := l.AcceptTCP()
		if err != nil {
			b.Fatal(err)
		}
		s.SetLinger(0)
		s.Close()
		c.Close()
	}
}

func BenchmarkSocketInNamespace(b *testing.B) {
	ns := netnstest.New(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			unix.Close(fd)
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// A successor opens the port while its predecessor still has it.
func TestListenShared(t *testing.T) {
	t.Parallel()
	first, err := netns.ListenShared(t.Context(), "tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := netns.ListenShared(t.Context(), "tcp", first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	for _, bad := range [][2]string{{"udp", "127.0.0.1:0"}, {"tcp", "localhost:0"}} {
		if l, err := netns.ListenShared(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("%v: listens on %s", bad, l.Addr())
		}
	}
}
