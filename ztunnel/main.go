// Command ztunnel is the per-node proxy of the mesh: it captures the traffic of
// the node's meshed pods and carries it in mutually authenticated tunnels. It is
// configured by environment variables only.
//
//	ztunnel [proxy ztunnel]   the proxy; as a container's first process, supervised
//	ztunnel supervise         the proxy, supervised: started again at once when it dies
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/app"
	"github.com/culvert-mesh/culvert/ztunnel/supervise"
)

func main() {
	_, child := os.LookupEnv(supervise.FDVariable)
	if supervised(os.Args[1:], os.Getpid(), child) {
		os.Exit(keepRunning())
	}
	run.Main("ztunnel", start)
}

// supervised reports whether this process is to start the proxy rather than be it.
// A process 1 has a container to itself, which it would take down with it.
func supervised(args []string, pid int, child bool) bool {
	return len(args) > 0 && args[0] == "supervise" || pid == 1 && !child
}

func start(ctx context.Context, _ *slog.Logger) error {
	return app.Main(ctx, os.Args[1:], os.Environ(), os.Stdout)
}

// keepRunning supervises a proxy and returns the status to exit with.
func keepRunning() int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("program", "ztunnel supervisor")
	self, err := os.Executable()
	if err != nil {
		log.Error("own program not found", "error", err)
		return 1
	}
	err = supervise.Run(context.Background(), supervise.Config{
		Path: self, Args: []string{"proxy"}, Env: os.Environ(), Signals: signals, Log: log,
	})
	var exit *supervise.Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Status
	}
	log.Error("stopped", "error", err)
	return 1
}
