package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// The client ends first; the application answers afterwards, on the half that
// is still open.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	addr := app(t, func(c *net.TCPConn) {
		got, _ := io.ReadAll(c)
		_, _ = c.Write([]byte("after your end: " + string(got)))
	})
	client, ended := m.through(t, addr, nil)
	_, _ = client.Write([]byte("question"))
	_ = client.CloseWrite()
	got, err := io.ReadAll(client)
	if err != nil || string(got) != "after your end: question" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The application ends first and goes on reading.
func TestHalfCloseByApplication(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	got := make(chan string, 1)
	addr := app(t, func(c *net.TCPConn) {
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	client, ended := m.through(t, addr, nil)
	if b, err := io.ReadAll(client); len(b) > 0 || err != nil {
		t.Fatalf("read %q, %v before the end", b, err)
	}
	_, _ = client.Write([]byte("still here"))
	_ = client.CloseWrite()
	if g := <-got; g != "still here" {
		t.Errorf("application read %q", g)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A program that resets its connection: the other program sees an ordinary end.
func TestResetBecomesFIN(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	saw := make(chan error, 1)
	addr := app(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		saw <- err
	})
	client, ended := m.through(t, addr, nil)
	roundHalf(t, client)
	_ = client.SetLinger(0)
	_ = client.Close()
	if err := <-saw; err != nil {
		t.Errorf("application: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("pump: %v", err)
	}
}

// A program that resets its connection while the other says nothing and goes on
// listening: nobody waits for the other to end.
func TestResetEndsBothWays(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	gone := make(chan struct{})
	addr := app(t, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		<-gone
	})
	client, ended := m.through(t, addr, nil)
	roundHalf(t, client)
	_ = client.SetLinger(0)
	_ = client.Close()
	if err := <-ended; err != nil {
		t.Errorf("pump: %v", err)
	}
	close(gone)
}

func roundHalf(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

// RST_STREAM from the peer: CANCEL is an end, another code an error; the socket
// sees a FIN either way.
func TestPeerResets(t *testing.T) {
	t.Parallel()
	for code, want := range map[hbone.Code]reason.Reason{
		hbone.Cancel: reason.None, hbone.NoError: reason.None, hbone.InternalError: reason.TunnelReset,
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
				s, err := in.Accept(hbone.Response{})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = s.Write([]byte("first"))
				_, _ = s.Read(make([]byte, 1))
				s.Reset(code)
			})
			client, ended := m.through(t, "10.0.0.1:80", nil)
			roundHalf(t, client)
			if b, err := io.ReadAll(client); string(b) != "first" || err != nil {
				t.Errorf("client read %q, %v", b, err)
			}
			if err := <-ended; reason.Of(err) != want {
				t.Errorf("pump: %v, want reason %q", err, want)
			}
		})
	}
}

// A pump whose context ends resets both sides.
// The peer resets a stream for whose application a lot is left, and the application
// does not read: the pump gives it up.
func TestResetDoesNotWaitForApplication(t *testing.T) {
	t.Parallel()
	m := newMesh(t, func(_ context.Context, in *hbone.Incoming) {
		s, err := in.Accept(hbone.Response{})
		if err != nil {
			return
		}
		buf := make([]byte, 64<<10)
		_ = s.SetWriteDeadline(time.Now().Add(time.Second)) // the window is full long before
		for err == nil {
			_, err = s.Write(buf)
		}
		s.Reset(hbone.InternalError)
	})
	s := m.open(t, "10.0.0.1:80").(*stream)
	_, proxy := hbonetest.TCPPair(t) // its other end is never read
	_ = proxy.SetWriteBuffer(16 << 10)
	raw, err := proxy.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	k := newSink(proxy, raw, new(hbone.Counters))
	k.patience = 10 * time.Millisecond
	s.attach(k)
	<-k.done
	if !errors.Is(k.err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", k.err)
	}
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.q.n > 0 || s.charged > 0 || s.held > 0 {
		t.Errorf("%d bytes are kept, %d charged, %d held", s.q.n, s.charged, s.held)
	}
}

func TestPumpContext(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	appSaw := make(chan error, 1)
	addr := app(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		appSaw <- err
	})
	client, proxy := hbonetest.TCPPair(t)
	s := m.open(t, addr)
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Pump(ctx, proxy, nil) }()
	roundHalf(t, client)
	cause := errors.New("policy changed")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("pump: %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read: %v, want a reset", err)
	}
	if err := <-appSaw; err != nil {
		t.Errorf("application: %v, want an ordinary end", err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		_, _ = in.Accept(hbone.Response{})
		<-hold
	})
	defer close(hold)
	s := m.open(t, "10.0.0.1:80")
	_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = s.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := s.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	_ = s.SetWriteDeadline(time.Time{})
	if err := s.CloseWrite(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

// An opener that gives up resets its stream, and the handler hears of it.
func TestOpenGivesUp(t *testing.T) {
	t.Parallel()
	arrived, gone := make(chan struct{}), make(chan struct{})
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		close(arrived)
		<-ctx.Done()
		if _, err := in.Accept(hbone.Response{}); err == nil {
			t.Error("accepted a stream that was given up")
		}
		close(gone)
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-arrived
		cancel()
	}()
	if _, _, err := m.pool.Open(ctx, m.peer, request("10.0.0.1:80")); reason.Of(err) != reason.DownstreamClosed {
		t.Errorf("open: %v", err)
	}
	<-gone
}

// A handler that returns without an answer rejects.
func TestHandlerWithoutAnswer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, func(context.Context, *hbone.Incoming) {})
	_, resp, err := m.pool.Open(context.Background(), m.peer, request("10.0.0.1:80"))
	if resp == nil || resp.Status != 503 || err.Error() != "open tunnel to 10.0.0.1:80: http status: 503" {
		t.Errorf("open: %+v, %v", resp, err)
	}
}

// 1000 streams at once need ten connections, which are used again afterwards.
func TestThousandStreams(t *testing.T) {
	t.Parallel()
	var peak, now atomic.Int64
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		peak.Store(max(peak.Load(), now.Add(1)))
		defer now.Add(-1)
		s, err := in.Accept(hbone.Response{})
		if err != nil {
			return
		}
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
	})
	round := func() {
		var wg sync.WaitGroup
		hold := make(chan struct{})
		var open sync.WaitGroup
		for range 1000 {
			open.Add(1)
			wg.Go(func() {
				s, _, err := m.pool.Open(context.Background(), m.peer, request("10.0.0.1:80"))
				open.Done()
				if err != nil {
					t.Error(err)
					return
				}
				<-hold
				echoThrough(t, s, 5000)
			})
		}
		open.Wait()
		close(hold)
		wg.Wait()
	}
	round()
	conns := len(m.pool.Snapshot())
	if conns < 10 || conns > 14 {
		t.Errorf("%d connections for 1000 streams", conns)
	}
	round()
	if again := len(m.pool.Snapshot()); again > conns+4 {
		t.Errorf("%d connections became %d: they are not used again", conns, again)
	}
}

// When everything is closed nothing is left: no goroutine, no descriptor.
func TestNothingLeft(t *testing.T) {
	fds := hbonetest.FDs(t)
	t.Run("mesh", func(t *testing.T) {
		m := newMesh(t, pumpTo)
		addr := app(t, echo)
		for range 50 {
			c, ended := m.through(t, addr, nil)
			roundTrip(t, c)
			_ = c.Close()
			<-ended
		}
	})
	hbonetest.Until(t, "goroutines to end", func() bool { return hbonetest.Goroutines("h2.(*") == 0 })
	hbonetest.Until(t, "descriptors to close", func() bool {
		runtime.GC() // the pipes of splice(2) are pooled: it takes more than one collection
		return hbonetest.FDs(t) <= fds
	})
}

// An idle stream keeps one goroutine at either end.
func TestGoroutinesPerStream(t *testing.T) {
	const streams = 50
	m := newMesh(t, pumpTo)
	addr := app(t, echo)
	for range streams {
		c, _ := m.through(t, addr, nil)
		roundTrip(t, c)
	}
	hbonetest.Until(t, "writers and drains to end", func() bool {
		return hbonetest.Goroutines("h2.(*") == hbonetest.Goroutines("h2.(*stream).Pump")+hbonetest.Goroutines("h2.(*conn).run")+hbonetest.Goroutines("h2.(*Server).Serve(")
	})
	if n := hbonetest.Goroutines("h2.(*stream).Pump"); n != 2*streams {
		t.Errorf("%d pumps for %d streams", n, streams)
	}
}

// The message of an error tells what was attempted and why it failed.
func TestDialErrors(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	p := NewPool(PoolConfig{Dial: dialTCP, TLS: constantTLS(ca.Client(t, clientID, serverID))})
	defer p.Close()
	ln := hbonetest.Listen(t)
	to := peerAt(t, ln.Addr().String())
	_ = ln.Close()
	_, _, err := p.Open(context.Background(), to, request("10.0.0.1:80"))
	if reason.Of(err) != reason.ConnectRefused || !strings.Contains(err.Error(), to.Addr.String()) {
		t.Errorf("closed port: %v", err)
	}
}
