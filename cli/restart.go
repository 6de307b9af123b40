package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

func restartCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "restart TARGET...",
		Short: "Replace components or a Deployment's pods while traffic goes on",
		Long: `Replace components or a Deployment's pods while traffic goes on.

TARGET is one of
  ztunnel, ztunnel/NODE      a successor starts beside it and takes over, then it drains
  NAMESPACE/DEPLOYMENT       new pods become ready before old ones leave (also a waypoint)
  agent, agent/NODE          stopped and started
  controlplane               stopped and started

or the name of a component as culvert ps shows it.`,
		Args: atLeastOne("restart wants what to replace", "such as: culvert restart ztunnel/node-1"),
	}
	name, out := nameFlag(e, c), outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		client, err := laptop.NewClient(*name)
		if err != nil {
			return err
		}
		var done []string
		for _, target := range args {
			names, err := client.Restart(c.Context(), target)
			if err != nil {
				return err
			}
			done = append(done, names...)
		}
		return out.write(e.stdout, done, func(w io.Writer) error {
			for _, n := range done {
				fmt.Fprintf(w, "%s replaced\n", n)
			}
			return nil
		})
	}
	return c
}
