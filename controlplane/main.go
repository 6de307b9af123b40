// Command controlplane reads the mesh's configuration and serves it: workload
// and waypoint discovery by delta xDS, and certificates for workloads.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/culvert-mesh/culvert/controlplane/app"
	"github.com/culvert-mesh/culvert/pkg/run"
)

func main() {
	run.Main("controlplane", func(ctx context.Context, _ *slog.Logger) error {
		return app.Main(ctx, os.Args[1:], os.Environ(), os.Stdout)
	})
}
