// Package app puts a ztunnel together: the node's view of the mesh, its
// certificates, the pods' proxies and the ports for people and for Kubernetes.
//
//	control plane ── xDS ──▶ workloads ──▶ proxy ◀── inpod ◀── ZDS ── node agent
//	              ── CA  ──▶ certs ────────▶ │
//	                                         └──▶ access log, metrics, admin
//
// A ztunnel asks the node agent for pods only after the control plane has told it
// the mesh, or its predecessor has left what it knew (handover.go, state.go), and
// goes on with what it knows when the control plane is away. A successor takes over
// its sockets and starts beside it; at the end it stops accepting, and connections
// may go on until the drain time is over.
package app

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/logging/otlp"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/zds"
	"github.com/culvert-mesh/culvert/ztunnel/inpod"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
)

// Main is a ztunnel process: it reads its configuration from environ, runs until
// ctx ends and drains. Its log goes to out. It takes no arguments.
func Main(ctx context.Context, args []string, environ []string, out io.Writer) error {
	if len(args) > 0 && args[0] != "proxy" { // upstream's image passes "proxy ztunnel"
		return fmt.Errorf("unexpected argument %q: ztunnel is configured by its environment (docs/ztunnel-environment.md)", args[0])
	}
	cfg, err := ParseConfig(environ)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(cmp.Or(cfg.Threads, defaultThreads(runtime.GOMAXPROCS(0))))
	debug.SetMemoryLimit(min(debug.SetMemoryLimit(-1), memoryLimit(os.DirFS("/sys/fs/cgroup")))) // GOMEMLIMIT may be less
	return logging.During(out, 0, func(w *logging.Writer) error {
		a, err := New(cfg, w)
		if err != nil {
			return err
		}
		return a.Run(ctx)
	})
}

// App is one ztunnel.
type App struct {
	cfg       Config
	out       *logging.Writer
	levels    *logging.Levels
	log       *slog.Logger
	otlp      *otlp.Logs // nil = log lines go to out only
	registry  *prometheus.Registry
	ready     *admin.Readiness
	store     *workloads.Store
	xds       *xds.Client       // nil without a control plane
	demand    *discovery.Demand // nil unless it is asked on demand
	certs     *certs.Cache
	tls       certs.Profile
	closeCA   func() error
	followCA  func(context.Context) error // nil if there is nothing to follow
	prefetch  *prefetch
	names     *workloads.Names
	tcp       *metrics.TCP
	node      *proxy.Node
	pods      *inpod.Pods
	alone     *proxy.Pod    // the one workload of a dedicated ztunnel; nil otherwise
	listening func()        // opens the gate "workload proxy manager"
	own       *proxy.Pod    // ztunnel's own; nil when it does not know its name
	zds       *zds.Client   // nil without a node agent
	learned   func()        // opens the gate "state manager"
	known     chan struct{} // closed when the mesh is known
	knowOnce  sync.Once

	stores   handover.Stores
	saver    *saver
	restored atomic.Pointer[restored] // what the predecessor left; nil = nothing
	status   status
	allUp    atomic.Bool // every pod of the node, at some time
	leaving  atomic.Pointer[handover.State]
	until    atomic.Pointer[time.Time] // when what is open will be cut off
	yield    context.CancelFunc
	yielded  context.Context // ends when our own ports are left to a successor

	quit     context.CancelFunc
	quitting context.Context // ends when an administrator asks for it
}

// New builds a ztunnel that logs to out. It starts nothing, but reads the local
// workload file if there is one.
func New(cfg Config, out *logging.Writer) (*App, error) {
	a := &App{cfg: cfg, out: out, ready: admin.NewReadiness(), store: workloads.New(),
		known: make(chan struct{}), status: status{wake: make(chan struct{}, 1)}}
	a.quitting, a.quit = context.WithCancel(context.Background())
	a.yielded, a.yield = context.WithCancel(context.Background())
	a.ready.SetNote(a.staleness)
	if err := a.buildLog(); err != nil {
		return nil, err
	}
	a.registry = metrics.NewRegistry("ztunnel", run.Version())
	metrics.LogDrops(a.registry, out.Dropped)
	a.countRecords()
	a.learned, _ = a.ready.Gate("state manager")
	for _, build := range []func() error{a.buildCerts, a.loadLocal, a.buildXDS, a.buildStores, a.buildNode, a.buildDNS, a.buildPods} {
		if err := build(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *App) buildLog() (err error) {
	if a.levels, err = logging.NewLevels(scopes(a.cfg.LogFilter)); err != nil {
		return fmt.Errorf("RUST_LOG: %w", err)
	}
	sink, err := a.buildOTLP()
	a.log = slog.New(logging.NewHandlerTo(a.out, a.format(), a.levels, sink))
	return err
}

func (a *App) format() logging.Format {
	if a.cfg.LogJSON {
		return logging.JSON
	}
	return logging.Plain
}

func (a *App) buildNode() error {
	a.tcp = metrics.NewTCP(a.registry, metrics.Config{Alive: a.names.Exists})
	a.node = &proxy.Node{
		Settings: a.settings(),
		Mesh:     a.store,
		Certs:    a.certs,
		TLS:      a.tls,
		Metrics:  a.tcp,
		Access:   accesslog.NewTo(a.out, a.format(), a.levels, a.sink()),
		Budget:   hbone.NewBudget(bufferBudget),
		Lookups:  metrics.NewOnDemandDNS(a.registry),
		Demand:   a.demand,
		Log:      logging.Scope(a.log, "proxy"),
	}
	proxy.NewMetrics(a.registry, a.node)
	a.buildSaver()
	a.node.Store = a.stores
	if a.xds != nil {
		a.node.Absence = &absence{a.xds, a.certs}
	}
	if a.cfg.dedicated() {
		a.alone = a.node.NewPod("", a.cfg.Dedicated, nil)
	} else if info, id, ok := a.cfg.Own(); ok {
		a.own = a.node.NewOwn(info, id, nil)
	}
	return nil
}

// bufferBudget is what all tunnels of the node together may buffer, in bytes.
const bufferBudget = 256 << 20

func (a *App) settings() proxy.Settings {
	c := a.cfg
	s := proxy.Settings{
		NodeName:      c.NodeName,
		Network:       c.Network,
		Cluster:       c.Cluster,
		TrustDomain:   c.TrustDomain,
		RootNamespace: c.RootNamespace,
		Mark:          c.Mark,
		ReusePort:     c.ReusePort,
		IPv6:          c.IPv6,
		OrigSrc:       c.OrigSrc != OrigSrcOff,
		OrigSrcMust:   c.OrigSrc == OrigSrcOn,
		AppLoopback:   c.AppLoopback,
		Baggage:       c.Baggage,
		LogPolicy:     c.LogPolicy,
		SOCKS:         c.SOCKS,
		MaxStreams:    c.PoolMaxStreams,
		PoolIdle:      c.PoolIdle,
		DrainDefault:  leaveTime,
		HTTP2: h2.Settings{
			MaxStreamWindow: int(c.StreamWindow),
			MaxConnWindow:   int(c.ConnectionWindow),
			MaxFrameSize:    int(c.FrameSize),
		},
	}
	k := c.KeepAlive
	s.KeepAlive = net.KeepAliveConfig{Enable: k.Enabled, Idle: k.Idle, Interval: k.Interval, Count: k.Retries}
	if k.UserTimeout {
		s.UserTimeout = k.Idle + time.Duration(k.Retries)*k.Interval
	}
	return s
}

// leaveTime is how long the connections of a deleted pod may go on.
const leaveTime = 5 * time.Second

func (a *App) buildPods() error {
	ready, _ := a.ready.Gate("workload proxy manager")
	if a.listening = ready; a.cfg.ZDSSocket == "" && !a.cfg.dedicated() {
		ready()
	}
	a.pods = inpod.New(inpod.Config{
		New: func(uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) inpod.Proxy {
			return a.node.NewPod(uid, info, ns)
		},
		Ready:   func() { ready(); a.serves() },
		Metrics: inpod.NewMetrics(a.registry),
		Log:     logging.Scope(a.log, "inpod"),
	})
	if a.cfg.ZDSSocket != "" {
		a.zds = zds.NewClient(a.cfg.ZDSSocket, a.pods, zds.ClientConfig{Log: logging.Scope(a.log, "zds")})
	}
	return nil
}

// Run serves until ctx ends, an administrator quits it or a part fails, and then
// drains.
func (a *App) Run(ctx context.Context) error {
	defer a.sendLogs()()
	defer a.close()
	a.greet()
	a.attach()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.quitting, cancel)()

	var g run.Group
	a.addParts(&g)
	err := g.RunFront(ctx, "proxies", a.serve)
	if err == nil {
		a.log.Info("stopped")
	}
	return err
}

func (a *App) addParts(g *run.Group) {
	if a.xds != nil {
		g.Add("xds", a.xds.Run)
		g.Add("state manager", a.awaitSnapshot)
	}
	a.addIdentity(g)
	g.Add("metrics series", a.tcp.Run)
	g.Add("policy", a.node.Recheck)
	g.Add("memory", tendMemory)
	for _, s := range a.stores {
		g.Add("store of sockets", s.Run)
	}
	if len(a.stores) > 0 {
		g.Add("state", a.saver.Run)
		g.Add("status", a.report)
	}
	g.Add("admin", a.untilYield(a.adminServer().Run))
	everywhere := netip.IPv6Unspecified().String()
	if !a.cfg.IPv6 {
		everywhere = netip.IPv4Unspecified().String()
	}
	g.Add("metrics", a.untilYield(admin.NewMetricsServer(a.server(everywhere, a.cfg.StatsPort), metrics.Handler(a.registry)).Run))
	g.Add("readiness", a.untilYield(admin.NewReadinessServer(a.server(everywhere, a.cfg.ReadyPort), a.ready).Run))
}

func (a *App) awaitSnapshot(ctx context.Context) error {
	select {
	case <-a.xds.FirstSnapshot():
		a.know()
		a.saver.poke(sectionContact) // and so saves what came before
		a.log.Info("the mesh is known")
	case <-ctx.Done():
	}
	return nil
}

// know says that the mesh is known.
func (a *App) know() {
	a.knowOnce.Do(func() {
		close(a.known)
		a.learned()
	})
}

// serves says that every pod of the node is served.
func (a *App) serves() {
	if !a.allUp.Swap(true) {
		a.status.poke()
	}
}

// serve serves the node's pods and ztunnel's own until serving ends, and then
// drains them; ctx ends at a failure of another part.
func (a *App) serve(ctx, serving context.Context) error {
	var g run.Group
	if a.alone != nil {
		g.Add("workload", func(ctx context.Context) error { return a.serveAlone(ctx, serving) })
		return g.Run(ctx)
	}
	g.Add("pods", func(ctx context.Context) error { return a.servePods(ctx, serving) })
	if a.own != nil {
		g.Add("own", func(ctx context.Context) error { return a.serveOwn(ctx, serving) })
	}
	return g.Run(ctx)
}

// serveOwn lets in whoever scrapes our metrics through the mesh. The node's pods
// do not depend on it.
func (a *App) serveOwn(ctx, serving context.Context) error {
	if err := a.own.Listen(serving); err != nil {
		a.log.Warn("metrics cannot be reached through the mesh", "error", err)
		return nil
	}
	var g run.Group
	g.Add("serve", a.own.Run)
	g.Add("drain", func(ctx context.Context) error {
		select {
		case <-serving.Done():
		case <-ctx.Done():
		}
		// Whoever scrapes us keeps a connection open; it leads to a successor next.
		deadline, done := context.WithTimeout(ctx, min(a.cfg.DrainTime, leaveTime))
		defer done()
		a.own.Drain(deadline)
		return nil
	})
	return g.Run(ctx)
}

func (a *App) servePods(ctx, serving context.Context) error {
	if a.xds != nil {
		select {
		case <-a.known:
		case <-serving.Done():
			return nil
		}
	}
	var g run.Group
	g.Add("inpod", a.pods.Run)
	if a.zds != nil {
		g.Add("zds", a.zds.Run)
	} else {
		g.Add("stop", func(ctx context.Context) error { <-ctx.Done(); return nil })
	}
	// The agent is listened to until the last connection has ended: pods may leave.
	return g.RunFront(serving, "pods", func(_, serving context.Context) error {
		<-serving.Done()
		a.leave(ctx)
		return nil
	})
}

func (a *App) close() {
	a.prefetch.close()
	a.names.Close()
	if a.closeCA != nil {
		a.closeCA()
	}
}

func (a *App) greet() {
	c := a.cfg
	a.log.Info("starting", "version", run.Version(), "go", runtime.Version(), "node", c.NodeName, "network", c.Network,
		"xds", c.XDS.Address, "ca", c.CA.Address)
}

// server is one of the ports. A successor may open it while we still do.
func (a *App) server(host string, port uint16) admin.Config {
	return admin.Config{
		Addr:   net.JoinHostPort(host, fmt.Sprint(port)),
		Listen: netns.ListenShared,
		Name:   "ztunnel",
		Log:    logging.Scope(a.log, "admin"),
	}
}
