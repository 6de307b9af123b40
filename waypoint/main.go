// Command waypoint is the L7 proxy of the mesh: it takes requests out of HBONE
// tunnels, routes and authorizes them, and sends them on through tunnels of its
// own. It is configured by environment variables and by its control plane.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/waypoint/app"
)

func main() { run.Main("waypoint", start) }

func start(ctx context.Context, _ *slog.Logger) error {
	return app.Main(ctx, os.Args[1:], os.Environ(), os.Stdout)
}
