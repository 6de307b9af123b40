package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
)

func statusCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Is the configuration accepted, are the components healthy? Exit status 1 when not",
		Args:  cobra.NoArgs,
	}
	from, out := readerFlagsOf(e, c), outputFlag(c)
	namespaces := namespacesFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		st, err := from.part(c.Context(), *namespaces)
		if err != nil {
			return err
		}
		h := healthOf(st)
		if err := out.write(e.stdout, h, h.print); err != nil {
			return err
		}
		if !h.Healthy {
			return exitStatus(1)
		}
		return nil
	}
	return c
}

// health is what `culvert status` says.
type health struct {
	Healthy       bool               `json:"healthy"`
	Configuration string             `json:"configuration"` // accepted, rejected in part, unknown
	Problems      []string           `json:"problems,omitempty"`
	NotReady      []string           `json:"not_ready,omitempty"`
	Components    []supervise.Status `json:"components"`
	ControlPlane  json.RawMessage    `json:"control_plane,omitempty"`
}

func healthOf(st *laptop.Status) health {
	h := health{Components: st.Components, NotReady: st.NotReady, Problems: problems(st), ControlPlane: st.Config.Raw}
	switch {
	case !st.Config.Connected:
		h.Configuration = "unknown: the control plane does not answer"
	case len(st.Config.Problems) > 0:
		h.Configuration = "accepted in part; what could not be read or is not valid keeps its last good state"
	default:
		h.Configuration = "accepted"
	}
	h.Healthy = st.Ready && h.Configuration == "accepted" && len(h.Problems) == 0
	return h
}

func (h health) print(w io.Writer) error {
	fmt.Fprintf(w, "configuration: %s\n", h.Configuration)
	for _, p := range h.Problems {
		fmt.Fprintf(w, "  %s\n", p)
	}
	for _, c := range h.Components {
		fmt.Fprintf(w, "%s: %s", c.Name, c.State)
		if c.Restarts > 0 {
			fmt.Fprintf(w, ", restarted %d times (last: %s)", c.Restarts, c.LastExit)
		}
		if c.Detail != "" {
			fmt.Fprintf(w, ": %s", c.Detail)
		}
		fmt.Fprintln(w)
	}
	for _, n := range h.NotReady {
		fmt.Fprintf(w, "not ready: %s\n", n)
	}
	if h.Healthy {
		_, err := fmt.Fprintln(w, "healthy")
		return err
	}
	_, err := fmt.Fprintln(w, "not healthy")
	return err
}
