// Package app is the node agent: it puts the pods of its node that belong to the
// mesh under the care of the node's ztunnel.
//
//	runtime ── POST /cmdadd ──▶┌───────┐  rules (redirect) ──▶ pod's namespace
//	                           │ Agent │  namespace (zds) ───▶ ztunnel
//	pods, labels (podsource) ─▶└───────┘  annotation ────────▶ API server, or a folder
//
// A pod joins
//
//  1. when the runtime has made its namespace and asks (/cmdadd): the answer 200
//     means that the rules are in and a ztunnel has taken the pod, 503 means try
//     again;
//  2. or while it runs, when a label of it or of its namespace changes, and after
//     a restart of the agent.
//
// It leaves when a label says so, without breaking a connection: new ones are its
// own affair at once; ztunnel and the remaining rules go when the redirected ones
// have ended. Each pod has one goroutine that brings it to where it should be and
// tries again, 5 ms to 5 s apart, when something fails; pods never wait for one
// another.
package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/culvert-mesh/culvert/cni-plugin/install"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Main is a node agent's process: it reads its flags, checks that the kernel can
// do what it will need, and runs until ctx ends. Its log goes to out. Pods stay
// as they are when it ends.
func Main(ctx context.Context, args []string, environ []string, out io.Writer) error {
	cfg, err := ParseConfig(args, environ, out)
	if err != nil {
		return err
	}
	return logging.During(out, logging.DefaultLimit, func(w *logging.Writer) error {
		levels, err := logging.NewLevels(cfg.LogLevel)
		if err != nil {
			return fmt.Errorf("log level: %w", err)
		}
		log := slog.New(logging.NewHandler(w, cfg.LogFormat, levels))
		if cfg.Uninstall {
			return uninstall(ctx, cfg, log)
		}
		return serve(ctx, cfg, log, levels)
	})
}

// process is an agent's parts, and what becomes of them at its end.
type process struct {
	cfg   Config
	log   *slog.Logger
	agent *Agent
	kube  *kube // nil without an API server

	installer *install.Installer // nil: the plugin is nobody's affair
	uninstall chan struct{}      // closed: the plugin is not kept installed any more
}

func serve(ctx context.Context, cfg Config, log *slog.Logger, levels *logging.Levels) error {
	if err := redirect.SelfTest(cfg.Proc); err != nil {
		return err
	}
	if !cfg.ProbeSNAT {
		if err := forgetProbes(); err != nil { // an earlier agent was told otherwise
			log.Warn("the node still rewrites probes", "error", err)
		}
	}
	registry := metrics.NewRegistry("node-agent", run.Version())
	var g run.Group
	parts := Parts{Metrics: NewMetrics(registry), Log: log}
	p := &process{cfg: cfg, log: log, uninstall: make(chan struct{})}
	var err error
	if p.kube, err = connect(&parts, &g, cfg); err != nil {
		return err
	}
	p.agent = New(cfg, parts)
	registry.MustRegister(heldSockets(p.agent.store))
	h := &server{agent: p.agent, metrics: metrics.Handler(registry), logging: admin.LevelPage{Levels: levels, Log: log}}
	g.Add("agent", p.agent.Run)
	g.Add("http", h.runUnix)
	if cfg.AdminListen.IsValid() {
		g.Add("admin", h.runTCP)
	}
	if err := p.install(&g, parts); err != nil {
		return err
	}
	if p.installer != nil {
		h.plugin = p.installer.Err
	}
	log.Info("node agent started", "node", cfg.Node, "socket", cfg.Socket, "zds", cfg.ZDS)
	return p.run(ctx, &g)
}

// install adds what keeps the plugin in the runtime's configuration.
func (p *process) install(g *run.Group, parts Parts) error {
	if p.cfg.CNI.Folder == "" {
		return nil
	}
	changed := make(chan struct{}, 1)
	var err error
	p.installer, err = newInstaller(p.cfg, p.log, func(changes int, err error) {
		parts.Metrics.tellInstalled(changes, err)
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	g.Add("CNI plugin", func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-p.uninstall:
				cancel()
			case <-ctx.Done():
			}
		}()
		return p.installer.Run(ctx)
	})
	if p.kube != nil {
		g.Add("node", func(ctx context.Context) error { return p.watchNode(ctx, parts, changed) })
	}
	return nil
}

// run runs the parts until ctx ends. They go on for a moment longer when there is
// no successor to leave the node to.
func (p *process) run(ctx context.Context, g *run.Group) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- g.Run(work) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	p.depart(work)
	stop()
	return <-ended
}
