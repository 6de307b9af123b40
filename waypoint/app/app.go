// Package app puts a waypoint together.
//
//	control plane ── xDS ──▶ config.Store, workloads ──▶ proxy ◀── listener ◀── HBONE 15008
//	              ── CA  ──▶ certs ───────────────────▶ upstream ──▶ HBONE to endpoints
//	                                                       └──▶ access log, metrics, admin
//
// A waypoint accepts traffic once the control plane has told it everything and
// its own certificate is there, and goes on with what it knows when the control
// plane is away. When it is told to stop it is not ready any more, accepts
// nothing, tells clients to come back elsewhere, and lets requests end until the
// drain time is over.
package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/proxy"
	"github.com/culvert-mesh/culvert/waypoint/upstream"
	waypointxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

// Main is a waypoint process: it reads its configuration from environ, runs until
// ctx ends and drains. Its log goes to out. The arguments of upstream's image,
// "proxy waypoint …", are accepted and mean nothing.
func Main(ctx context.Context, args []string, environ []string, out io.Writer) error {
	if len(args) > 0 && args[0] != "proxy" {
		return fmt.Errorf("unexpected argument %q: waypoint is configured by its environment", args[0])
	}
	cfg, err := ParseConfig(environ)
	if err != nil {
		return err
	}
	return logging.During(out, 0, func(w *logging.Writer) error {
		a, err := New(cfg, w)
		if err != nil {
			return err
		}
		return a.Run(ctx)
	})
}

// Limits of a waypoint's connections.
const (
	bufferBudget = 256 << 20 // bytes that all tunnels may buffer
	headTimeout  = time.Minute
	idleTimeout  = time.Hour // upstream's
	maxStreams   = 200       // per tunnel connection
	forceTime    = time.Second
)

// App is one waypoint.
type App struct {
	cfg      Config
	out      *logging.Writer
	levels   *logging.Levels
	log      *slog.Logger
	registry *prometheus.Registry
	ready    *admin.Readiness
	gates    gates

	store    *config.Store
	decoder  *waypointxds.Decoder
	known    *workloads.Store
	names    *workloads.Names
	xds      *xds.Client
	ca       *caclient.Client
	certs    *certs.Cache
	budget   *hbone.Budget
	tunnels  *h2.Pool
	pool     *upstream.Pool
	clusters *cluster.Clusters
	requests *metrics.Requests
	tcp      *metrics.TCP
	proxy    *proxy.Proxy
	server   *h2.Server
	rejected atomic.Bool // some resource was, ever

	quit     context.CancelFunc
	quitting context.Context // ends when an administrator asks for it
}

// gates are what readiness waits for.
type gates struct {
	learned, certified  func()
	listening, draining func()
}

// New builds a waypoint that logs to out. It starts nothing.
func New(cfg Config, out *logging.Writer) (*App, error) {
	a := &App{cfg: cfg, out: out, ready: admin.NewReadiness(), store: config.NewStore(), known: workloads.New(), budget: hbone.NewBudget(bufferBudget)}
	a.names = workloads.NewNames(a.known)
	a.quitting, a.quit = context.WithCancel(context.Background())
	a.gates.learned, _ = a.ready.Gate("configuration")
	a.gates.certified, _ = a.ready.Gate("certificate")
	a.gates.listening, a.gates.draining = a.ready.Gate("listener")
	for _, build := range []func() error{a.buildLog, a.buildMetrics, a.buildCerts, a.buildXDS} {
		if err := build(); err != nil {
			return nil, err
		}
	}
	a.buildUpstream()
	a.buildProxy()
	return a, nil
}

func (a *App) buildLog() error {
	format, err := logging.ParseFormat(a.cfg.LogFormat)
	if err != nil {
		return fmt.Errorf("LOG_FORMAT: %w", err)
	}
	if a.levels, err = logging.NewLevels(a.cfg.LogLevel); err != nil {
		return fmt.Errorf("LOG_LEVEL: %w", err)
	}
	a.log = slog.New(logging.NewHandler(a.out, format, a.levels))
	return nil
}

func (a *App) buildMetrics() error {
	a.registry = metrics.NewRegistry("waypoint", run.Version())
	metrics.LogDrops(a.registry, a.out.Dropped)
	a.requests = metrics.NewRequests(a.registry, metrics.Config{Alive: a.names.Exists})
	a.tcp = metrics.NewTCP(a.registry, metrics.Config{Alive: a.names.Exists})
	return nil
}

func (a *App) buildUpstream() {
	a.tunnels = h2.NewPool(h2.PoolConfig{
		Dial: dial,
		TLS: func(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
			return certs.ClientTLS(ctx, a.certs, to.Source, to.Expect)
		},
		Budget:      a.budget,
		Log:         logging.Scope(a.log, "tunnels"),
		ConnLeaving: func(hbone.Peer) { go a.pool.Yield() },
	})
	a.clusters = cluster.New(cluster.Config{View: a.known, Network: a.cfg.Network, IPv6: a.cfg.InstanceIP.Is6()})
	a.known.Subscribe(a.clusters.Changed)
}

func (a *App) buildProxy() {
	codec := h1.Options{IdleTimeout: idleTimeout, HeadTimeout: headTimeout, Buffers: new(h1.Buffers)}
	a.pool = upstream.NewPool(upstream.Config{
		Self:    a.cfg.Identity(),
		LocalIP: a.cfg.InstanceIP,
		Tunnels: a.tunnels,
		Dial:    dial,
		HTTP:    codec,
	})
	format, _ := logging.ParseFormat(a.cfg.LogFormat) // checked by buildLog
	a.proxy = proxy.New(proxy.Config{
		Store:    a.store,
		View:     a.known,
		Network:  a.cfg.Network,
		Clusters: a.clusters,
		Upstream: a.pool,
		HTTP:     codec,
		Requests: a.requests,
		TCP:      a.tcp,
		Log:      accesslog.New(a.out, format, a.levels),
	})
	front := listener.New(listener.Config{Store: a.store, Network: a.cfg.Network, Handler: a.proxy})
	a.server = h2.NewServer(h2.ServerConfig{
		TLS: func(ctx context.Context) (*tls.Config, error) {
			return certs.ServerTLS(ctx, a.certs, a.cfg.Identity(), certs.ServerOptions{})
		},
		Handler:    front.Serve,
		MaxStreams: maxStreams,
		Budget:     a.budget,
		Log:        logging.Scope(a.log, "hbone"),
		ConnError:  a.badTunnel,
	})
}

// badTunnel tells of a client whose tunnel could not be set up.
func (a *App) badTunnel(remote netip.AddrPort, err error) {
	a.log.Warn("tunnel refused", "src.addr", remote, "error", err)
}

// dial opens a TCP connection in the waypoint's own network namespace.
func dial(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	var own *netns.NS
	return own.Dial(ctx, addr, netns.DialOptions{})
}

// Run serves until ctx ends, an administrator quits it or a part fails, and then
// drains.
func (a *App) Run(ctx context.Context) error {
	defer a.ca.Close()
	defer a.names.Close()
	a.log.Info("starting", "version", run.Version(), "go", runtime.Version(), "gateway", a.cfg.Namespace+"/"+a.cfg.Gateway,
		"identity", a.cfg.Identity().String(), "xds", a.cfg.XDS.Address, "ca", a.cfg.CA.Address)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.quitting, cancel)()

	var g run.Group
	a.addParts(&g)
	err := g.RunFront(ctx, "hbone", a.serve)
	a.log.Info("stopped", "error", err)
	return err
}

func (a *App) addParts(g *run.Group) {
	g.Add("xds", a.xds.Run)
	g.Add("certificates", a.certs.Run)
	g.Add("certificate", a.awaitCertificate)
	g.Add("tunnels", a.tunnels.Run)
	g.Add("connections", a.pool.Run)
	g.Add("policy", a.proxy.Recheck)
	g.Add("request series", a.requests.Run)
	g.Add("tcp series", a.tcp.Run)
	g.Add("admin", a.adminServer().Run)
	everywhere := netip.IPv6Unspecified().String()
	g.Add("metrics", admin.NewMetricsServer(a.adminConfig(everywhere, a.cfg.Ports.Metrics), metrics.Handler(a.registry)).Run)
	g.Add("readiness", admin.NewReadinessServer(a.adminConfig(everywhere, a.cfg.Ports.Ready), a.ready).Run)
}

// awaitCertificate asks for the own certificate until it is there.
func (a *App) awaitCertificate(ctx context.Context) error {
	id := a.cfg.Identity()
	a.certs.Prefetch(id)
	backoff := run.NewBackoff(100*time.Millisecond, 5*time.Second)
	for {
		_, err := a.certs.Certificate(ctx, id)
		if err == nil {
			a.gates.certified()
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("waiting for a certificate", "error", err)
		if run.Sleep(ctx, backoff.Next()) != nil {
			return nil
		}
	}
}

// serve accepts tunnels from the first configuration on until serving ends, and
// then drains; ctx ends at a failure of another part.
func (a *App) serve(ctx, serving context.Context) error {
	if !a.awaitConfiguration(serving) {
		return nil
	}
	ln, err := netns.ListenShared(serving, "tcp", net.JoinHostPort(netip.IPv6Unspecified().String(), fmt.Sprint(a.cfg.Ports.HBONE)))
	if err != nil {
		return err
	}
	a.gates.listening()
	accepting, done := a.accepting(ctx, serving)
	defer done()
	err = a.server.Serve(accepting, ln)
	a.drain(ctx)
	return err
}

// accepting is serving and MinDrain more. Whoever ends this waypoint tells the ztunnels
// in the same moment that there is another one: until they have heard of that they come
// here, with new tunnels too, and are served as before. Only readiness falls at once.
func (a *App) accepting(ctx, serving context.Context) (context.Context, func()) {
	accepting, end := context.WithCancel(ctx)
	stop := context.AfterFunc(serving, func() {
		defer end()
		a.gates.draining()
		if a.cfg.MinDrain > 0 {
			a.log.Info("ending; tunnels are accepted a while longer", "for", a.cfg.MinDrain)
			_ = run.Sleep(accepting, a.cfg.MinDrain) // cut short by the end of another part
		}
	})
	return accepting, func() { stop(); end() }
}

// quiet is how long the control plane must have said nothing more for a first
// configuration with rejected resources to count as all there is.
const quiet = time.Second

// awaitConfiguration waits for the first configuration; false means that ctx
// ended. A resource that was rejected must not keep all others from being served.
func (a *App) awaitConfiguration(ctx context.Context) bool {
	tick := time.NewTicker(quiet / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-a.xds.FirstSnapshot():
			a.log.Info("configuration is complete")
			a.gates.learned()
			return true
		case <-tick.C:
			if a.rejected.Load() && time.Since(a.xds.LastContact()) > quiet {
				a.log.Warn("configuration is complete but for rejected resources")
				a.gates.learned()
				return true
			}
		}
	}
}

// drain lets requests end: clients were told to go away by Serve's end already.
func (a *App) drain(ctx context.Context) {
	a.gates.draining()
	left := a.cfg.DrainTime - a.cfg.MinDrain
	a.log.Info("draining", "deadline", left, "active", a.proxy.Active())
	deadline, done := context.WithTimeout(ctx, left)
	defer done()
	a.proxy.Drain()
	if err := a.proxy.Idle(deadline); err != nil {
		a.log.Warn("drain time is over", "active", a.proxy.Active())
	}
	// Tunnels without streams have been told to go away and end by themselves.
	last, done := context.WithTimeout(ctx, forceTime)
	defer done()
	if a.server.Drain(last) != nil {
		a.log.Info("tunnels closed by force")
	}
	_ = a.server.Close()
	_ = a.tunnels.Close()
}
