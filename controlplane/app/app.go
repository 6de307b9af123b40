// Package app wires the control plane together.
//
//	source/{file,kube} ─► model ─► xds/workload, xds/waypoint ─► xds.Cache ─► delta streams ┐
//	                 │                                                             ├─ 15012, TLS
//	                 ├─► NodeRule ─► ca ──────────────────────────────────────────┘
//	                 └─► status ─► 15000 /debug/status     15014 metrics     15021 readiness
//
// An App is run once. Its exported methods are safe for concurrent use.
package app

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/controlplane/admission"
	"github.com/culvert-mesh/culvert/controlplane/ca"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/status"
	"github.com/culvert-mesh/culvert/controlplane/xds"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/controlplane/xds/workload"
	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
	authzpb "github.com/culvert-mesh/culvert/pkg/wire/authz"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	workloadpb "github.com/culvert-mesh/culvert/pkg/wire/workload"
)

// Main parses flags and environment and runs the control plane until ctx ends.
// Log lines go to out.
func Main(ctx context.Context, args, environ []string, out io.Writer) error {
	cfg, err := ParseConfig(args, environ, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	levels, err := logging.NewLevels(cfg.LogLevel)
	if err != nil {
		return err
	}
	format, err := logging.ParseFormat(cfg.LogFormat)
	if err != nil {
		return err
	}
	saveMemory()
	return logging.During(out, 0, func(w *logging.Writer) error {
		a, err := New(cfg, slog.New(logging.NewHandler(w, format, levels)), levels)
		if err != nil {
			return err
		}
		metrics.LogDrops(a.registry, w.Dropped)
		return a.Run(ctx)
	})
}

// pushOrder is the order in which types are pushed: what others refer to first.
func pushOrder() []string {
	return []string{authzpb.TypeURL, waypoint.ClusterTypeURL, waypoint.RouteTypeURL, waypointpb.TypeURL, workloadpb.TypeURL}
}

// kinds says who may ask for what.
func kinds() xds.Kinds {
	l4 := []string{authzpb.TypeURL, workloadpb.TypeURL}
	return xds.Kinds{
		"ztunnel":  l4,
		"waypoint": append(l4, waypoint.ClusterTypeURL, waypoint.RouteTypeURL, waypointpb.TypeURL),
	}
}

// App is the control plane.
type App struct {
	cfg           Config
	log           *slog.Logger
	registry      *prometheus.Registry
	triggers      prometheus.Counter
	source        source.Source
	model         *model.Model
	cache         *xds.Cache
	streams       *xds.Server
	authority     *selfsigned.Authority // without a key until Run, where an API server keeps it
	ca            *ca.Server
	board         *status.Board
	admin         *admin.Server
	readiness     *admin.Server
	metrics       *admin.Server
	identity      *serving
	keepAuthority func(context.Context) error
	kube          *rest.Config // of the API server; nil without one. To be copied, not changed
	led           []led        // what only one replica does
	statuses      *status.Writer
	webhook       *admission.Server // nil without an API server

	first     chan struct{} // closed when the first snapshot is in the cache
	firstOnce sync.Once
	synced    func() // opens the readiness gate
	signs     func() // likewise
	leaving   func() // closes it for good
	bound     chan net.Addr
}

// New builds the control plane from its parts. It opens the certificate authority
// that is in a folder, and starts nothing.
func New(cfg Config, log *slog.Logger, levels admin.Levels) (*App, error) {
	a := &App{cfg: cfg, log: log, first: make(chan struct{}), bound: make(chan net.Addr, 1)}
	a.registry = metrics.NewRegistry("pilot", run.Version())
	a.triggers = prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_push_triggers", Help: "Changes of the source that were compiled."})
	a.registry.MustRegister(a.triggers)
	auth, err := a.connect()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(a.openAuthority(), a.spreadTrust()); err != nil {
		return nil, err
	}
	a.identity = newServing(a.authority, cfg.Hostnames, cfg.Addresses, logging.Scope(log, "tls"))
	a.model = model.New(cfg.Mesh)
	a.cache = xds.NewCache()
	a.streams = xds.NewServer(xds.Config{
		Cache: a.cache, Order: pushOrder(), Auth: auth, Kinds: kinds(), Account: a.model.GatewayAccount, Ready: a.first,
		Log: logging.Scope(log, "xds"), Metrics: a.registry,
	})
	a.ca = a.newCA(auth)
	a.board = status.NewBoard(status.Inputs{
		Conditions: a.model.Conditions, ConditionsOf: a.conditionsOf, Objects: a.model.Len, Resources: a.cache.Count, Proxies: a.streams.Proxies,
		Log: logging.Scope(log, "config"),
	})
	a.observe(levels)
	if err := errors.Join(a.keepStatus(), a.admit()); err != nil {
		return nil, err
	}
	if err := a.buildGateways(); err != nil {
		return nil, err
	}
	return a, nil
}

// observe builds the admin, readiness and metrics servers.
func (a *App) observe(levels admin.Levels) {
	log := logging.Scope(a.log, "admin")
	a.admin = admin.New(admin.Config{Addr: a.cfg.AdminListen, Name: "controlplane", Levels: levels, Log: log})
	a.admin.Handle("/debug/status", "configuration accepted or not, connected proxies (JSON)", a.board)
	a.admin.Dump("resources", func() any { return a.cache.Count() })
	a.admin.Dump("proxies", func() any { return a.streams.Proxies() })
	ready := admin.NewReadiness()
	a.synced, _ = ready.Gate("first configuration")
	a.signs, _ = ready.Gate("certificate authority")
	stay, leave := ready.Gate("this replica ends")
	stay()
	a.leaving = leave
	a.readiness = admin.NewReadinessServer(admin.Config{Addr: a.cfg.ReadyListen, Name: "controlplane", Log: log}, ready)
	a.metrics = admin.NewMetricsServer(admin.Config{Addr: a.cfg.MetricsListen, Name: "controlplane", Log: log}, metrics.Handler(a.registry))
}

// Run runs the control plane until ctx ends or a part fails. With an API server it
// then goes on for as long as it takes to send its clients to other replicas.
func (a *App) Run(ctx context.Context) error {
	var g run.Group
	g.Add("source", func(ctx context.Context) error { return a.source.Run(ctx, a.update) })
	g.Add("certificate authority", a.keepAuthority)
	g.Add("first certificate", a.awaitAuthority)
	g.Add("admin", a.admin.Run)
	g.Add("readiness", a.readiness.Run)
	g.Add("metrics", a.metrics.Run)
	if a.webhook != nil {
		g.Add("webhook", a.webhook.Run)
	}
	if len(a.led) > 0 {
		g.Add("leader", func(inner context.Context) error {
			leading, stop := context.WithCancelCause(inner)
			defer stop(nil)
			defer context.AfterFunc(ctx, func() { stop(context.Cause(ctx)) })() // at once, not after the drain
			return a.elect(leading)
		})
	}
	return g.RunFront(ctx, "xds", a.serve)
}

// Status returns what /debug/status shows.
func (a *App) Status() status.Report { return a.board.Report() }

// Handler returns the handler of /debug/status.
func (a *App) Handler() http.Handler { return a.board }

// update takes a change of the source all the way to the streams.
func (a *App) update(u source.Update) {
	a.triggers.Inc()
	changes := a.model.Apply(u)
	updates := make([]xds.Update, len(changes))
	for i, c := range changes {
		updates[i] = xds.Update{Owner: c.Key, Resources: append(workload.Resources(c.Output), waypoint.Resources(c.Output)...)}
	}
	a.cache.Apply(updates)
	keys := judged(u, changes)
	a.board.Changed(keys)
	if a.statuses != nil {
		a.statuses.Changed(keys...)
	}
	if u.Previous {
		return
	}
	a.firstOnce.Do(func() {
		close(a.first)
		a.synced()
		a.log.Info("configuration read", "objects", a.model.Len())
	})
	a.board.Updated(u.Problems)
	a.keep(u.Problems)
}

// keep lets the source keep the files in which nothing is wrong.
func (a *App) keep(problems []source.Problem) {
	k, ok := a.source.(source.Keeper)
	if !ok {
		return
	}
	bad := sync.OnceValue(func() map[string]bool { return a.badFiles(problems) }) // most changes are not of files to keep
	if err := k.Keep(func(file string) bool { return !bad()[file] }); err != nil {
		a.log.Warn("last good state is not kept", "err", err)
	}
}

// badFiles returns the files in which something is wrong by itself.
func (a *App) badFiles(problems []source.Problem) map[string]bool {
	bad := map[string]bool{}
	for _, p := range problems {
		bad[p.File] = bad[p.File] || p.Reason != reason.Unsupported
	}
	for _, c := range a.model.Conditions() {
		bad[c.File] = bad[c.File] || c.Reason == reason.InvalidValue
	}
	return bad
}
