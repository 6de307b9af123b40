package h2

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// mesh is a pool and a server on loopback, with an application behind it.
type testMesh struct {
	ca     *hbonetest.CA
	pool   *Pool
	server *Server
	peer   hbone.Peer
	stop   context.CancelFunc // of Serve
	served chan error
}

var (
	clientID = hbonetest.Identity("client")
	serverID = hbonetest.Identity("server")
)

// newMesh starts both ends. The handler is pumpTo's for most tests.
func newMesh(t testing.TB, handler hbone.Handler, adjust ...func(*PoolConfig, *ServerConfig)) *testMesh {
	t.Helper()
	m := &testMesh{ca: hbonetest.NewCA(t), served: make(chan error, 1)}
	serverTLS, clientTLS := m.ca.Server(t, serverID), m.ca.Client(t, clientID, serverID)
	pc := PoolConfig{
		Dial: dialTCP,
		TLS:  func(context.Context, hbone.Peer) (*tls.Config, error) { return clientTLS, nil },
	}
	sc := ServerConfig{
		TLS:     func(context.Context) (*tls.Config, error) { return serverTLS, nil },
		Handler: handler,
	}
	for _, f := range adjust {
		f(&pc, &sc)
	}
	ln := hbonetest.Listen(t)
	m.pool, m.server = NewPool(pc), NewServer(sc)
	m.peer = hbone.Peer{Source: clientID, Expect: []mesh.Identity{serverID}, Addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.served <- m.server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		_ = m.pool.Close()
		cancel()
		_ = m.server.Close()
		_ = m.server.Drain(context.Background())
		_ = m.pool.Drain(context.Background())
	})
	return m
}

func dialTCP(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// open opens a stream to authority.
func (m *testMesh) open(t testing.TB, authority string) hbone.Stream {
	t.Helper()
	s, _, err := m.pool.Open(context.Background(), m.peer, request(authority))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func request(authority string) hbone.Request {
	return hbone.Request{Authority: authority, Header: hbone.Header{
		Baggage:     "k8s.cluster.name=Kubernetes,k8s.namespace.name=test",
		Forwarded:   `for="10.0.0.1:1234"`,
		Traceparent: hbone.NewTraceparent(),
	}}
}

// pumpTo accepts every CONNECT and pumps it to its authority.
func pumpTo(ctx context.Context, in *hbone.Incoming) {
	addr, err := netip.ParseAddrPort(in.Request.Authority)
	if err != nil {
		_ = in.Reject(400)
		return
	}
	conn, err := dialTCP(ctx, addr)
	if err != nil {
		_ = in.Reject(503)
		return
	}
	defer conn.Close()
	s, err := in.Accept(hbone.Response{Baggage: "service.name=app"})
	if err != nil {
		return
	}
	_ = s.Pump(ctx, conn, nil)
}

// app runs serve for every connection to it and returns its address.
func app(t testing.TB, serve func(c *net.TCPConn)) string {
	t.Helper()
	ln := hbonetest.Listen(t)
	go func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return ln.Addr().String()
}

// echo sends back what it gets.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// through returns a client's socket whose other end is pumped to authority.
func (m *testMesh) through(t testing.TB, authority string, n *hbone.Counters) (*net.TCPConn, chan error) {
	t.Helper()
	client, proxy := hbonetest.TCPPair(t)
	s := m.open(t, authority)
	ended := make(chan error, 1)
	go func() {
		err := s.Pump(context.Background(), proxy, n)
		_ = s.Close()
		_ = proxy.Close()
		ended <- err
	}()
	return client, ended
}

func constantTLS(cfg *tls.Config) func(context.Context, hbone.Peer) (*tls.Config, error) {
	return func(context.Context, hbone.Peer) (*tls.Config, error) { return cfg, nil }
}

func addrPort(a hbone.Authority) netip.AddrPort { return netip.AddrPortFrom(a.Addr, a.Port) }
