package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Openers of one key share one dial; another key, the order of the expected
// identities included, dials for itself.
func TestPoolKeys(t *testing.T) {
	t.Parallel()
	var dials atomic.Int64
	m := newMesh(t, acceptAndRead, func(pc *PoolConfig, _ *ServerConfig) {
		pc.Dial = func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
			dials.Add(1)
			return dialTCP(ctx, addr)
		}
	})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			s, _, err := m.pool.Open(context.Background(), m.peer, request("10.0.0.1:80"))
			if err != nil {
				t.Error(err)
				return
			}
			_ = s.Close()
		})
	}
	wg.Wait()
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials for one key", n)
	}
	a, b := serverID, hbonetest.Identity("other")
	for _, to := range []hbone.Peer{
		{Source: clientID, Expect: []mesh.Identity{a, b}, Addr: m.peer.Addr},
		{Source: clientID, Expect: []mesh.Identity{b, a}, Addr: m.peer.Addr},
		{Source: clientID, Expect: []mesh.Identity{a}, Addr: m.peer.Addr, LocalIP: netip.MustParseAddr("10.0.0.7")},
		{Source: b, Expect: []mesh.Identity{a}, Addr: m.peer.Addr},
	} {
		s, _, err := m.pool.Open(context.Background(), to, request("10.0.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
	if n := dials.Load(); n != 5 {
		t.Errorf("%d dials for five keys", n)
	}
}

// The peer's limit counts when it is lower than ours; a stream that the peer
// refused nevertheless is opened again.
func TestPoolHonoursPeersLimit(t *testing.T) {
	t.Parallel()
	m := newMesh(t, acceptAndHold, func(_ *PoolConfig, sc *ServerConfig) { sc.MaxStreams = 10 })
	var streams []hbone.Stream
	for range 35 {
		streams = append(streams, m.open(t, "10.0.0.1:80"))
	}
	if n := len(m.pool.Snapshot()); n < 4 || n > 5 {
		t.Errorf("%d connections for 35 streams of at most 10", n)
	}
	for _, s := range streams {
		_ = s.Close()
	}
}

// Streams that are opened before the peer's limit is known, and refused, are
// opened again.
func TestPoolBeforePeersLimit(t *testing.T) {
	t.Parallel()
	m := newMesh(t, acceptAndHold, func(_ *PoolConfig, sc *ServerConfig) { sc.MaxStreams = 5 })
	for i := range byte(10) {
		to := m.peer
		to.LocalIP = netip.AddrFrom4([4]byte{10, 0, 0, i}) // so that all connections are new
		var wg sync.WaitGroup
		streams := make([]hbone.Stream, 20)
		for i := range streams {
			wg.Go(func() {
				s, _, err := m.pool.Open(context.Background(), to, request("10.0.0.1:80"))
				if err != nil {
					t.Error(err)
					return
				}
				streams[i] = s
			})
		}
		wg.Wait()
		for _, s := range streams {
			if s != nil {
				_ = s.Close()
			}
		}
	}
}

// An opener does not go on for ever with a peer that sends every connection away.
func TestPeerAlwaysAway(t *testing.T) {
	t.Parallel()
	var dials atomic.Int64
	ca := hbonetest.NewCA(t)
	ln := hbonetest.Listen(t)
	cfg := ca.Server(t, serverID)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go sendAway(tls.Server(c, cfg))
		}
	}()
	p := NewPool(PoolConfig{TLS: constantTLS(ca.Client(t, clientID, serverID)), Dial: func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
		dials.Add(1)
		return dialTCP(ctx, addr)
	}})
	defer p.Close()
	_, _, err := p.Open(context.Background(), peerAt(t, ln.Addr().String()), request("10.0.0.1:80"))
	if reason.Of(err) != reason.Draining {
		t.Errorf("open: %v", err)
	}
	if n := dials.Load(); n > maxTries*(maxTries+1) {
		t.Errorf("%d dials", n)
	}
}

// sendAway speaks HTTP/2 just so far that the client knows it must go.
func sendAway(c net.Conn) {
	defer c.Close()
	fr := http2.NewFramer(c, c)
	_ = fr.WriteSettings()
	_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	_, _ = io.Copy(io.Discard, c)
}

// While servers drain and are replaced under load no request fails.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	cfg := ca.Server(t, serverID)
	var addr atomic.Value // of the newest server
	start := func() (*Server, context.CancelFunc) {
		ln := hbonetest.Listen(t)
		s := NewServer(ServerConfig{TLS: func(context.Context) (*tls.Config, error) { return cfg, nil }, Handler: acceptAndRead})
		ctx, cancel := context.WithCancel(context.Background())
		go func() { _ = s.Serve(ctx, ln) }()
		addr.Store(ln.Addr().(*net.TCPAddr).AddrPort())
		return s, cancel
	}
	server, stop := start()
	p := NewPool(PoolConfig{
		Dial: func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
			for {
				to := addr.Load().(netip.AddrPort)
				c, err := dialTCP(ctx, to)
				if err == nil || addr.Load().(netip.AddrPort) == to { // else it was replaced meanwhile
					return c, err
				}
			}
		},
		TLS: constantTLS(ca.Client(t, clientID, serverID)),
	})
	to := hbone.Peer{Source: clientID, Expect: []mesh.Identity{serverID}}
	done := make(chan struct{})
	var requests atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				s, _, err := p.Open(context.Background(), to, request("10.0.0.1:80"))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				_ = s.CloseWrite()
				<-s.Done()
				_ = s.Close()
				requests.Add(1)
			}
		})
	}
	for i := range int64(8) {
		hbonetest.Until(t, "requests", func() bool { return requests.Load() > (i+1)*100 })
		old, stopOld := server, stop
		server, stop = start()
		stopOld()
		if err := old.Drain(context.Background()); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if err := p.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	stop()
	_ = server.Close()
	_ = server.Drain(context.Background())
}

// A pool that was closed opens nothing, and its streams are over.
func TestPoolClose(t *testing.T) {
	t.Parallel()
	m := newMesh(t, acceptAndHold)
	s := m.open(t, "10.0.0.1:80")
	_ = m.pool.Close()
	_ = m.pool.Close()
	<-s.Done()
	if _, _, err := m.pool.Open(context.Background(), m.peer, request("10.0.0.1:80")); reason.Of(err) != reason.Draining {
		t.Errorf("open: %v", err)
	}
}

// Closing a server ends its handlers' contexts and its streams.
func TestServerClose(t *testing.T) {
	t.Parallel()
	over := make(chan error, 1)
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		_, _ = in.Accept(hbone.Response{})
		<-ctx.Done()
		over <- ctx.Err()
	})
	s := m.open(t, "10.0.0.1:80")
	_ = m.server.Close()
	if err := <-over; err == nil {
		t.Error("no error")
	}
	<-s.Done()
	var reset *hbone.ResetError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != hbone.Cancel {
		t.Errorf("read: %v, want CANCEL from the peer", err)
	}
}

// A server that refuses our certificate says so after the client's handshake is
// done (TLS 1.3).
func TestCertificateRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t, acceptAndRead)
	stranger := hbonetest.NewCA(t).Client(t, clientID, serverID)
	stranger.VerifyConnection = nil
	p := NewPool(PoolConfig{Dial: dialTCP, TLS: constantTLS(stranger)})
	defer p.Close()
	_, _, err := p.Open(context.Background(), m.peer, request("10.0.0.1:80"))
	if reason.Of(err) != reason.TLSFailure {
		t.Errorf("open: %v", err)
	}
}

// A server that accepts TLS and then hangs up fails the opener, at once and with
// the reason.
func TestTunnelHandshakeFailure(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	ln := hbonetest.Listen(t)
	cfg := ca.Server(t, serverID)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			tc := tls.Server(c, cfg)
			_ = tc.Handshake()
			_, _ = tc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = tc.Close()
		}
	}()
	p := NewPool(PoolConfig{Dial: dialTCP, TLS: constantTLS(ca.Client(t, clientID, serverID))})
	defer p.Close()
	_, _, err := p.Open(context.Background(), peerAt(t, ln.Addr().String()), request("10.0.0.1:80"))
	if reason.Of(err) != reason.TunnelHandshake {
		t.Errorf("open: %v", err)
	}
}
