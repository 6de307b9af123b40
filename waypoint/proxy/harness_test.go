package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	stdhttp "net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/proxy"
	"github.com/culvert-mesh/culvert/waypoint/router"
	"github.com/culvert-mesh/culvert/waypoint/upstream"
)

// A small mesh on loopback, with real tunnels:
//
//	client ══ HBONE as frontend ══▶ waypoint ══ HBONE as waypoint ══▶ node ─▶ origin
//
// Addresses of pods are made up; dialling a pod's port 15008 reaches the node's
// tunnel server, which connects to the origin that stands for the pod.

func identity(name string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}
}

var (
	frontend   = identity("frontend")
	waypointID = identity("waypoint")
	cartID     = identity("cart")
	vip        = netip.MustParseAddr("10.96.0.1")
	service    = mesh.ServiceName{Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"}
)

// world is one test's mesh.
type world struct {
	t        testing.TB
	source   certs.Source
	store    *config.Store
	known    *workloads.Store
	clusters *cluster.Clusters
	proxy    *proxy.Proxy
	pool     *upstream.Pool
	log      *recorder
	server   *h2.Server
	client   *h2.Pool
	wpAddr   netip.AddrPort
	nodeAddr netip.AddrPort

	mu      sync.Mutex
	origins map[string]string // pod ip:port to origin
	opened  []string          // authorities that the node was asked for
	stop    context.CancelFunc
}

type options struct {
	http     h1.Options
	dest     config.Destination // what differs from a plain HTTP service
	routes   *config.RouteTable
	detect   time.Duration
	quiet    bool // keep no log
	filters  filter.Chain
	net      filter.Network
	protocol config.Protocol
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	slow     time.Duration // that the node takes to connect to an origin
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	authority, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	fixed := certs.Fixed{}
	for _, id := range []mesh.Identity{frontend, waypointID, cartID} {
		if fixed[id], err = authority.Issue(context.Background(), id); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, source: fixed, store: config.NewStore(), known: workloads.New(), log: new(recorder), origins: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	t.Cleanup(w.close)
	w.startNode(ctx, o.slow)
	w.startWaypoint(ctx, o)
	w.client = w.newPool()
	w.configure(o)
	return w
}

func (w *world) newPool() *h2.Pool {
	return h2.NewPool(h2.PoolConfig{
		Dial: w.dial,
		TLS: func(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
			return certs.ClientTLS(ctx, w.source, to.Source, to.Expect)
		},
	})
}

// dial reaches the node for every pod's tunnel port.
func (w *world) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	if to.Port() == mesh.PortHBONE {
		to = w.nodeAddr
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (w *world) serve(ctx context.Context, self mesh.Identity, h hbone.Handler) (*h2.Server, netip.AddrPort) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := h2.NewServer(h2.ServerConfig{
		TLS: func(ctx context.Context) (*tls.Config, error) {
			return certs.ServerTLS(ctx, w.source, self, certs.ServerOptions{})
		},
		Handler: h,
	})
	go func() { _ = s.Serve(ctx, ln) }()
	w.t.Cleanup(func() { _ = s.Close() })
	return s, ln.Addr().(*net.TCPAddr).AddrPort()
}

// startNode plays the ztunnel in front of the origins.
func (w *world) startNode(ctx context.Context, slow time.Duration) {
	_, w.nodeAddr = w.serve(ctx, cartID, func(ctx context.Context, in *hbone.Incoming) {
		w.mu.Lock()
		w.opened = append(w.opened, in.Request.Authority)
		to := w.origins[in.Request.Authority]
		w.mu.Unlock()
		<-time.After(slow)
		c, err := net.Dial("tcp", to)
		if err != nil {
			_ = in.Reject(503)
			return
		}
		defer c.Close()
		s, err := in.Accept(hbone.Response{Status: 200})
		if err != nil {
			return
		}
		defer s.Close()
		_ = s.Pump(ctx, c.(*net.TCPConn), nil)
	})
}

func (w *world) startWaypoint(ctx context.Context, o options) {
	if o.http.Buffers == nil {
		o.http.Buffers = new(h1.Buffers)
	}
	w.clusters = cluster.New(cluster.Config{View: w.known})
	w.known.Subscribe(w.clusters.Changed)
	tunnels := w.newPool()
	w.pool = upstream.NewPool(upstream.Config{Self: waypointID, Tunnels: tunnels, Dial: w.dial, HTTP: o.http, Lookup: o.lookup})
	cfg := proxy.Config{Store: w.store, View: w.known, Clusters: w.clusters, Upstream: w.pool, HTTP: o.http}
	if !o.quiet {
		cfg.Log = w.log
	}
	w.proxy = proxy.New(cfg)
	l := listener.New(listener.Config{Store: w.store, Handler: w.proxy, DetectTimeout: o.detect})
	w.server, w.wpAddr = w.serve(ctx, waypointID, l.Serve)
	poolDone := make(chan struct{})
	go func() { defer close(poolDone); _ = w.pool.Run(ctx) }()
	w.t.Cleanup(func() {
		w.stop()
		<-poolDone
		_ = tunnels.Close()
	})
}

func (w *world) close() {
	w.stop()
	if w.client != nil {
		_ = w.client.Close()
	}
}

// configure publishes the service and its clusters.
func (w *world) configure(o options) {
	d := o.dest
	d.Name = "shop/cart/80"
	d.Addresses = []mesh.NetAddr{{Addr: vip}}
	d.Service, d.Port, d.Cluster = service, 80, "outbound|80||cart"
	d.Protocol = o.protocol
	if o.protocol == config.Auto && o.detect == 0 {
		d.Protocol = config.HTTP
	}
	d.HTTPFilters, d.NetworkFilters = o.filters, o.net
	routes := map[string]config.Routes{}
	if o.routes != nil {
		table, err := router.Compile(o.routes)
		if err != nil {
			w.t.Fatal(err)
		}
		d.Routes = "routes"
		routes["routes"] = table
	}
	clusters := map[string]*config.Cluster{
		"outbound|80||cart": {Name: "outbound|80||cart", Service: service, Port: 80},
		"empty":             {Name: "empty", Service: mesh.ServiceName{Namespace: "shop", Hostname: "empty"}, Port: 80},
	}
	w.store.Publish(config.NewSnapshot(map[string]*config.Destination{d.Name: &d}, routes, clusters))
}

// pod makes the origin at addr an endpoint of the service.
func (w *world) pod(name, ip, origin string) {
	w.mu.Lock()
	w.origins[ip+":8080"] = origin
	w.mu.Unlock()
	w.known.Apply(workloads.Update{
		Services: []*mesh.Service{{Name: "cart", Namespace: "shop", Hostname: service.Hostname, VIPs: []mesh.NetAddr{{Addr: vip}},
			Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
		Workloads: []*mesh.Workload{{
			UID: mesh.UID("Kubernetes//Pod/shop/" + name), Name: name, Namespace: "shop", Addresses: []netip.Addr{netip.MustParseAddr(ip)},
			Protocol: mesh.HBONE, TrustDomain: "cluster.local", ServiceAccount: "cart", Capacity: 1,
			Services: []mesh.Membership{{Service: service, Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
		}},
	})
}

// origin starts a web server and makes it the service's only endpoint.
func (w *world) origin(h stdhttp.HandlerFunc) *stdhttp.Server {
	s := &stdhttp.Server{Handler: h}
	w.pod("cart-1", "10.244.0.9", serveHTTP(w.t, s))
	return s
}

func serveHTTP(t testing.TB, s *stdhttp.Server) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}

// connect opens a connection to the service as its client's ztunnel does.
func (w *world) connect(ctx context.Context, authority string) (net.Conn, error) {
	peer := hbone.Peer{Source: frontend, Expect: []mesh.Identity{waypointID}, Addr: w.wpAddr}
	s, _, err := w.client.Open(ctx, peer, hbone.Request{Authority: authority})
	if err != nil {
		return nil, err
	}
	return &streamConn{s}, nil
}

func (w *world) dialVIP(t testing.TB) *streamConn {
	t.Helper()
	c, err := w.connect(context.Background(), vip.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*streamConn)
}

// http returns a client of the standard library's whose connections go to the service.
func (w *world) http() *stdhttp.Client {
	tr := &stdhttp.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return w.connect(ctx, vip.String()+":80")
		},
		DisableCompression: true, MaxIdleConnsPerHost: 100, ExpectContinueTimeout: 10 * time.Second,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &stdhttp.Client{Transport: tr, CheckRedirect: func(*stdhttp.Request, []*stdhttp.Request) error { return stdhttp.ErrUseLastResponse }}
}

// streamConn makes a tunnel's stream a net.Conn.
type streamConn struct{ hbone.Stream }

func (c *streamConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.Stream.LocalAddr()) }
func (c *streamConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Stream.RemoteAddr()) }
func (c *streamConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// recorder keeps the access log.
type recorder struct {
	mu       sync.Mutex
	requests []accesslog.Request
	conns    []accesslog.Connection
	failed   []accesslog.Connection
}

func (r *recorder) Request(l *accesslog.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, *l)
}

func (r *recorder) Complete(l *accesslog.Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, *l)
}

func (r *recorder) Failed(l *accesslog.Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, *l)
}

// last waits until n requests are logged and returns the last one.
func (r *recorder) last(t testing.TB, n int) accesslog.Request {
	t.Helper()
	var out accesslog.Request
	await(t, fmt.Sprintf("%d logged requests", n), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.requests) < n {
			return false
		}
		out = r.requests[n-1]
		return true
	})
	return out
}

// await polls until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}

func readAll(t testing.TB, resp *stdhttp.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// leakCheck fails the test when goroutines or descriptors are left over. Call it
// before anything is started.
func leakCheck(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), openFDs()
	t.Cleanup(func() {
		var buf bytes.Buffer
		deadline := time.Now().Add(2 * time.Minute)
		for runtime.NumGoroutine() > goroutines || openFDs() > fds {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				buf.Write(stacks[:runtime.Stack(stacks, true)])
				t.Fatalf("goroutines %d → %d, descriptors %d → %d\n%s", goroutines, runtime.NumGoroutine(), fds, openFDs(), buf.String())
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

func openFDs() int {
	d, _ := os.ReadDir("/proc/self/fd")
	return len(d)
}
