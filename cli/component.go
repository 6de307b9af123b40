package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop/echo"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	agent "github.com/culvert-mesh/culvert/cni-plugin/app"
	controlplane "github.com/culvert-mesh/culvert/controlplane/app"
	waypoint "github.com/culvert-mesh/culvert/waypoint/app"
	ztunnel "github.com/culvert-mesh/culvert/ztunnel/app"
)

// program is the main function of a component, the same that its own binary has.
type program func(ctx context.Context, args, environ []string, out io.Writer) error

// programs are what `culvert component NAME` can be.
func programs() map[string]program {
	return map[string]program{
		"ztunnel":      ztunnel.Main,
		"waypoint":     waypoint.Main,
		"controlplane": controlplane.Main,
		"agent":        agent.Main,
		"echo":         echoMain,
		"lookup":       lookupMain,
		"pod-init":     func(_ context.Context, args, environ []string, _ io.Writer) error { return pod.Init(args, environ) },
	}
}

// componentCommand runs one of the mesh's programs in this process. `culvert up`
// executes the binary again with it, once for each component.
func componentCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "component NAME [ARG...]",
		Short:              "Run one program of the mesh",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("component: which one?")
			}
			main, ok := programs()[args[0]]
			if !ok {
				return fmt.Errorf("component %q: there is no such program", args[0])
			}
			err := main(c.Context(), args[1:], e.environ, e.stdout)
			if c.Context().Err() != nil {
				return nil // it was told to end
			}
			return err
		},
	}
}

func echoMain(ctx context.Context, args, environ []string, _ io.Writer) error {
	cfg, err := echo.ParseConfig(args, func(name string) string { return pod.Getenv(environ, name) })
	if err != nil {
		return err
	}
	if cfg.Pod == "" {
		cfg.Pod, _ = os.Hostname()
	}
	return echo.Run(ctx, cfg)
}
