package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// downPatience is how long a mesh may take to clean up after itself.
const downPatience = 20 * time.Second

func downCommand(e *env) *cobra.Command {
	c := &cobra.Command{Use: "down", Short: "Stop a mesh and remove everything that it made", Args: cobra.NoArgs}
	name := nameFlag(e, c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		client, err := laptop.NewClient(*name)
		if err != nil {
			return err
		}
		if err := bringDown(c.Context(), client); err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "mesh %q is down\n", *name)
		return nil
	}
	return c
}

// bringDown ends a running mesh, or removes what a crashed one left.
func bringDown(ctx context.Context, client *laptop.Client) error {
	err := client.Down(ctx)
	if err != nil && !errors.Is(err, laptop.ErrNotRunning) {
		return err
	}
	if waitErr := awaitEnd(ctx, client); waitErr != nil {
		return waitErr
	}
	if _, statErr := os.Stat(string(client.Dir())); statErr != nil {
		return err
	}
	return client.Dir().Remove() // it crashed
}

// awaitEnd waits until no process holds the mesh.
func awaitEnd(ctx context.Context, client *laptop.Client) error {
	ctx, cancel := context.WithTimeout(ctx, downPatience)
	defer cancel()
	for client.Dir().Running() {
		if err := run.Sleep(ctx, 20*time.Millisecond); err != nil {
			return laptop.WithHint(fmt.Errorf("the mesh has not ended yet: %w", err), "see %s", client.Dir().UpLog())
		}
	}
	return nil
}
