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
			return uninstall(cfg, log)
		}
		return serve(ctx, cfg, log, levels)
	})
}

func serve(ctx context.Context, cfg Config, log *slog.Logger, levels *logging.Levels) error {
	if err := redirect.SelfTest(cfg.Proc); err != nil {
		return err
	}
	registry := metrics.NewRegistry("node-agent", run.Version())
	var g run.Group
	parts := Parts{Metrics: NewMetrics(registry), Log: log}
	if err := connect(&parts, &g, cfg); err != nil {
		return err
	}
	a := New(cfg, parts)
	registry.MustRegister(heldSockets(a.store))
	h := &server{agent: a, metrics: metrics.Handler(registry), logging: admin.LevelPage{Levels: levels, Log: log}}
	g.Add("agent", a.Run)
	g.Add("http", h.runUnix)
	if cfg.AdminListen.IsValid() {
		g.Add("admin", h.runTCP)
	}
	if cfg.CNI.Folder != "" {
		installer, err := newInstaller(cfg, log)
		if err != nil {
			return err
		}
		g.Add("CNI plugin", installer.Run)
	}
	log.Info("node agent started", "node", cfg.Node, "socket", cfg.Socket, "zds", cfg.ZDS)
	return g.Run(ctx)
}
