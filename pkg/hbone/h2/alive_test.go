package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// A peer is given up when it is gone, and kept while its process only stands still.
func TestVerdict(t *testing.T) {
	set := Settings{}.withDefaults(true)
	for name, c := range map[string]struct {
		silent, unanswered time.Duration
		kernel             kernel
		gone               bool
	}{
		"a moment":                         {time.Second, time.Second, kernel{known: true}, false},
		"frozen":                           {time.Minute, time.Minute, kernel{known: true}, false},
		"frozen for too long":              {2 * time.Minute, 2 * time.Minute, kernel{known: true}, true},
		"gone, at first":                   {2 * time.Second, 2 * time.Second, kernel{known: true, deaf: time.Hour}, false},
		"gone":                             {4 * time.Second, 4 * time.Second, kernel{known: true, deaf: 4 * time.Second}, true},
		"quiet":                            {time.Hour, 0, kernel{}, false},
		"quiet and gone":                   {5 * time.Second, 0, kernel{known: true, deaf: 5 * time.Second}, true},
		"loses a packet":                   {4 * time.Second, 4 * time.Second, kernel{known: true, deaf: time.Second}, false},
		"nothing known of its kernel":      {19 * time.Second, 19 * time.Second, kernel{}, false},
		"nothing known, for too long":      {20 * time.Second, 20 * time.Second, kernel{}, true},
		"sends all the time without reads": {time.Second, 4 * time.Minute, kernel{known: true}, true},
	} {
		if why := set.verdict(c.silent, c.unanswered, c.kernel); (why != "") != c.gone {
			t.Errorf("%s: %q", name, why)
		}
	}
}

// freezer passes bytes on between a pool and a server, until it is frozen: then
// both kernels go on and the process between them does not.
type freezer struct {
	to string

	mu     sync.Mutex
	frozen chan struct{} // nil: not frozen; closed by thaw
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = make(chan struct{})
}

func (f *freezer) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.frozen)
	f.frozen = nil
}

// wait returns when the freezer is not frozen.
func (f *freezer) wait() {
	f.mu.Lock()
	frozen := f.frozen
	f.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (f *freezer) serve(c *net.TCPConn) {
	f.wait()
	d, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer d.Close()
	var both sync.WaitGroup
	both.Go(func() { f.pass(d.(*net.TCPConn), c) })
	both.Go(func() { f.pass(c, d.(*net.TCPConn)) })
	both.Wait()
}

func (f *freezer) pass(to, from *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		f.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// While a peer's process stands still new streams do not wait for it when they
// can go elsewhere, its open stream waits, and nothing is lost when it comes back.
func TestFrozenPeer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	f := &freezer{to: m.peer.Addr.String()}
	m.peer.Addr = netip.MustParseAddrPort(app(t, f.serve))
	echoes := app(t, echo)

	client, _ := m.through(t, echoes, nil)
	say := func() {
		t.Helper()
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	say()
	f.freeze()
	impatient := request(echoes)
	impatient.Impatient = true
	for _, asked := range []bool{true, false} { // on the tunnel that is there, and on one that is not made
		_, _, err := m.pool.Open(t.Context(), m.peer, impatient)
		if reason.Of(err) != reason.Unresponsive || errors.Is(err, hbone.ErrNoConnection) == asked {
			t.Fatalf("open at a frozen peer: %v", err)
		}
	}
	opened := make(chan error, 1)
	go func() {
		s, _, err := m.pool.Open(context.Background(), m.peer, request(echoes))
		if err == nil {
			_ = s.Close()
		}
		opened <- err
	}()
	f.thaw()
	say()
	if err := <-opened; err != nil {
		t.Errorf("who could not go elsewhere: %v", err)
	}
}

// A request whose connection breaks before the answer is sent again on another.
func TestOpenSurvivesLostConnection(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	calls, killed := 0, make(chan struct{})
	var m *testMesh
	m = newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		mu.Lock()
		calls++
		second := calls == 2
		mu.Unlock()
		if !second {
			_, _ = in.Accept(hbone.Response{})
			return
		}
		m.server.mu.Lock()
		for c := range m.server.conns {
			c.cut()
		}
		m.server.mu.Unlock()
		close(killed)
		<-ctx.Done()
	})
	for range 2 { // the second on the first's connection, and then on another
		s, _, err := m.pool.Open(t.Context(), m.peer, request("10.0.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
	<-killed
	mu.Lock()
	defer mu.Unlock()
	if calls != 3 {
		t.Errorf("%d requests, want 3", calls)
	}
}

// TCP says of a connection whose other end is there that nothing is outstanding.
func TestKernelKnows(t *testing.T) {
	a, _ := hbonetest.TCPPair(t)
	c := &conn{socket: socket(a)}
	if k := c.kernel(); !k.known || k.deaf != 0 {
		t.Errorf("%+v", k)
	}
	_ = a.Close()
	if k := c.kernel(); k.known {
		t.Errorf("closed: %+v", k)
	}
	if k := new(conn).kernel(); k.known {
		t.Errorf("without a socket: %+v", k)
	}
}

// A peer that is cut off is given up long before a PING is overdue: its kernel does
// not answer.
func TestPeerGone(t *testing.T) {
	t.Parallel()
	there, here := netnstest.Pair(t)
	ln, err := there.Listen(t.Context(), netip.AddrPortFrom(netnstest.PairA4.Addr(), 15008), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan struct{})
	m := newMesh(t, func(_ context.Context, in *hbone.Incoming) {
		s, err := in.Accept(hbone.Response{})
		if err == nil {
			close(opened)
			_, _ = io.Copy(io.Discard, s)
		}
	}, func(pc *PoolConfig, _ *ServerConfig) {
		pc.Settings.PingTimeout = time.Hour // of a peer whose kernel nothing is known of
		pc.Dial = func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return here.Dial(ctx, to, netns.DialOptions{})
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = m.server.Serve(ctx, ln) }()
	m.peer.Addr = netip.AddrPortFrom(netnstest.PairA4.Addr(), 15008)
	s := m.open(t, "10.0.0.1:80")
	defer s.Close()
	<-opened
	cut(t, there)
	if _, err := s.Write([]byte("is anybody there?")); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		over <- err
	}()
	select {
	case err := <-over:
		if reason.Of(err) != reason.TunnelClosed {
			t.Errorf("the stream: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the tunnel of a peer that is gone is still there")
	}
}

// cut takes every link of a namespace but loopback down.
func cut(t *testing.T, ns *netns.NS) {
	t.Helper()
	err := ns.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().Flags&net.FlagLoopback == 0 {
				if err := netlink.LinkSetDown(l); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
