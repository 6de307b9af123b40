// Command culvert-agent is the node agent of the mesh: it redirects the traffic
// of the node's meshed pods and hands their network namespaces to ztunnel.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/culvert-mesh/culvert/cni-plugin/app"
	"github.com/culvert-mesh/culvert/pkg/run"
)

func main() { run.Main("culvert-agent", start) }

func start(ctx context.Context, _ *slog.Logger) error {
	return app.Main(ctx, os.Args[1:], os.Environ(), os.Stdout)
}
