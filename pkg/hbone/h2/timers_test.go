package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// memPipe is a net.Pipe whose writes do not wait for the reader, as a socket's.
func memPipe() (a, b net.Conn) {
	a, b = net.Pipe()
	return newBuffered(a), newBuffered(b)
}

// buffered queues writes for a goroutine that passes them on.
type buffered struct {
	net.Conn
	out  chan []byte
	done chan struct{}
}

func newBuffered(c net.Conn) *buffered {
	b := &buffered{Conn: c, out: make(chan []byte, 1000), done: make(chan struct{})}
	go b.send()
	return b
}

func (b *buffered) send() {
	for {
		select {
		case p := <-b.out:
			if p == nil {
				_ = b.Conn.Close()
				return
			}
			if _, err := b.Conn.Write(p); err != nil {
				return
			}
		case <-b.done:
			return
		}
	}
}

func (b *buffered) Write(p []byte) (int, error) {
	b.out <- append([]byte{}, p...)
	return len(p), nil
}

func (b *buffered) Close() error {
	select {
	case <-b.done:
	default:
		close(b.done)
	}
	return b.Conn.Close()
}

// memPair runs a client's and a server's conn over memory.
func memPair(t *testing.T, handler hbone.Handler, clientSet, serverSet Settings) (client, server *conn, ended chan error) {
	a, b := memPipe()
	client = newConn(&plain{Conn: a}, true, clientSet, nil, nil)
	server = newConn(&plain{Conn: b}, false, serverSet, nil, nil)
	server.serverSide = serverSide{ctx: t.Context(), handler: handler, maxStreams: 200}
	ended = make(chan error, 2)
	for _, c := range []*conn{server, client} {
		c.greet(200)
		c.startPings()
		go func() { ended <- c.run() }()
	}
	return client, server, ended
}

// A quiet connection lives for as long as PINGs are answered.
func TestKeepaliveKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, ended := memPair(t, acceptAndRead, Settings{}, Settings{})
		time.Sleep(time.Hour)
		synctest.Wait()
		if client.err != nil || server.err != nil {
			t.Fatalf("after an hour: %v, %v", client.err, server.err)
		}
		if client.pingID < 300 {
			t.Errorf("%d PINGs in an hour", client.pingID)
		}
		client.cut()
		server.cut()
		<-ended
		<-ended
	})
}

// A peer that is silent for 20 s after a PING is given up; who waits for it has
// long been told to look elsewhere.
func TestKeepaliveGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memPipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		c := newConn(&plain{Conn: a}, true, Settings{}, nil, nil)
		c.greet(0)
		c.startPings()
		start := time.Now()
		opened := make(chan error, 1)
		c.slots++
		go func() {
			_, _, err := c.open(t.Context(), request("10.0.0.1:80"))
			opened <- err
		}()
		err := c.run()
		if took := time.Since(start); took < 20*time.Second || took > 32*time.Second {
			t.Errorf("gave up after %v", took)
		}
		if reason.Of(err) != reason.TunnelClosed {
			t.Errorf("run: %v", err)
		}
		if err := <-opened; reason.Of(err) != reason.Unresponsive {
			t.Errorf("open: %v", err)
		}
		_ = b.Close()
	})
}

// A client's connection without streams closes after the idle time, not before.
func TestIdleRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, ended := memPair(t, acceptAndRead, Settings{}, Settings{})
		client.mu.Lock()
		client.idleFor = 5 * time.Minute
		client.mu.Unlock()
		for range 3 {
			time.Sleep(4 * time.Minute)
			synctest.Wait()
			if !client.reserveSlot(100) {
				t.Fatal("closed while in use")
			}
			s, _, err := client.open(t.Context(), request("10.0.0.1:80"))
			if err != nil {
				t.Fatal(err)
			}
			_ = s.CloseWrite()
			<-s.Done()
		}
		start := time.Now()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(start); took < 5*time.Minute || took > 5*time.Minute+15*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

// A connect that hangs fails after 10 s with the reason that helps.
func TestConnectTimeout(t *testing.T) {
	ca := hbonetest.NewCA(t)
	cfg := ca.Client(t, clientID, serverID)
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		p := NewPool(PoolConfig{
			Dial: func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
				dials++
				<-ctx.Done()
				return nil, ctx.Err()
			},
			TLS: constantTLS(cfg),
		})
		start := time.Now()
		errs := make(chan error, 5)
		for range 5 {
			go func() {
				_, _, err := p.Open(t.Context(), hbone.Peer{}, request("10.0.0.1:80"))
				errs <- err
			}()
		}
		for range 5 {
			if err := <-errs; reason.Of(err) != reason.HBONETimeout {
				t.Errorf("open: %v", err)
			}
		}
		if took := time.Since(start); took != 10*time.Second || dials != 1 {
			t.Errorf("%d dials, %v", dials, took)
		}
		_ = p.Close()
	})
}

// A server's drain admits streams for one more round trip, lets them finish and
// then ends the connection.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, ended := memPair(t, acceptAndRead, Settings{}, Settings{})
		client.slots++
		s, _, err := client.open(t.Context(), request("10.0.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		server.drain()
		synctest.Wait()
		if client.reserveSlot(100) {
			t.Error("a slot on a connection that drains")
		}
		if _, err := s.Write(make([]byte, 100_000)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// A connection that never says anything is closed when the time for the
// handshake is over.
func TestHandshakeTimeout(t *testing.T) {
	ca := hbonetest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		s := NewServer(ServerConfig{TLS: func(context.Context) (*tls.Config, error) { return ca.Server(t, serverID), nil }, Handler: acceptAndRead})
		start := time.Now()
		if err := s.ServeConn(a); reason.Of(err) != reason.TLSFailure {
			t.Errorf("serve: %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("after %v", took)
		}
		_ = b.Close()
		_ = s.Close()
	})
}
