// Command ztunnel is the per-node proxy of the mesh: it captures the traffic of
// the node's meshed pods and carries it in mutually authenticated tunnels. It is
// configured by environment variables only.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/app"
)

func main() { run.Main("ztunnel", start) }

func start(ctx context.Context, _ *slog.Logger) error {
	return app.Main(ctx, os.Args[1:], os.Environ(), os.Stdout)
}
