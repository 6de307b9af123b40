package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
)

func waypointCommand(e *env) *cobra.Command {
	c := &cobra.Command{Use: "waypoint", Short: "Make, show and delete waypoints of a Kubernetes cluster"}
	c.AddCommand(waypointApply(e), waypointGenerate(e), waypointList(e), waypointStatus(e), waypointDelete(e))
	return c
}

// waypointFlags describe a waypoint, with istioctl's names.
type waypointFlags struct {
	*kubeFlags
	w install.Waypoint
}

func waypointFlagsOf(c *cobra.Command) *waypointFlags {
	f := &waypointFlags{kubeFlags: kubeFlagsOf(c)}
	c.Flags().StringVarP(&f.w.Namespace, "namespace", "n", "default", "namespace of the waypoint")
	return f
}

func (f *waypointFlags) describe(c *cobra.Command) {
	c.Flags().StringVar(&f.w.Name, "name", "waypoint", "name of the waypoint")
	c.Flags().StringVar(&f.w.For, "for", "", "the traffic that it is for: service, workload, all or none (default service)")
	c.Flags().StringVarP(&f.w.Revision, "revision", "r", "", "label istio.io/rev")
}

func waypointApply(e *env) *cobra.Command {
	c := &cobra.Command{Use: "apply", Short: "Make a waypoint in a namespace, or change it", Args: cobra.NoArgs,
		Example: "  culvert waypoint apply --namespace shop --enroll-namespace --wait"}
	f := waypointFlagsOf(c)
	f.describe(c)
	var enroll, wait bool
	var timeout time.Duration
	c.Flags().BoolVar(&enroll, "enroll-namespace", false, "have the namespace's services use it")
	c.Flags().BoolVarP(&wait, "wait", "w", false, "until it serves")
	c.Flags().DurationVar(&timeout, "timeout", 90*time.Second, "how long to wait")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cluster, err := f.connect()
		if err != nil {
			return err
		}
		if !wait {
			timeout = 0
		}
		if err := cluster.ApplyWaypoint(c.Context(), f.w, timeout, e.stdout); err != nil {
			return err
		}
		if enroll {
			return cluster.Enroll(c.Context(), f.w.Namespace, f.w.Name, e.stdout)
		}
		return nil
	}
	return c
}

func waypointGenerate(e *env) *cobra.Command {
	c := &cobra.Command{Use: "generate", Short: "Write a waypoint's manifest to standard output", Args: cobra.NoArgs}
	f := waypointFlagsOf(c)
	f.describe(c)
	c.RunE = func(*cobra.Command, []string) error {
		text, err := f.w.YAML()
		if err == nil {
			_, err = fmt.Fprint(e.stdout, text)
		}
		return err
	}
	return c
}

func waypointList(e *env) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List waypoints", Args: cobra.NoArgs}
	f, out := waypointFlagsOf(c), outputFlag(c)
	var all bool
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	c.RunE = func(c *cobra.Command, _ []string) error {
		namespace := f.w.Namespace
		if all {
			namespace = ""
		}
		found, err := waypointsOf(c, f, namespace)
		if err != nil {
			return err
		}
		return out.write(e.stdout, found, func(w io.Writer) error { return printWaypoints(w, found) })
	}
	return c
}

func waypointsOf(c *cobra.Command, f *waypointFlags, namespace string) ([]install.Gateway, error) {
	cluster, err := f.connect()
	if err != nil {
		return nil, err
	}
	return cluster.Waypoints(c.Context(), namespace)
}

func printWaypoints(w io.Writer, found []install.Gateway) error {
	var rows [][]string
	for _, g := range found {
		purpose := g.For
		if purpose == "" {
			purpose = "service"
		}
		rows = append(rows, []string{g.Namespace, g.Name, g.Class, purpose, fmt.Sprint(g.Programmed), g.Message})
	}
	return table(w, "NAMESPACE NAME CLASS FOR PROGRAMMED MESSAGE", rows)
}

func waypointStatus(e *env) *cobra.Command {
	c := &cobra.Command{Use: "status [NAME]", Short: "Do the waypoints of a namespace serve? Exit status 1 when not", Args: cobra.MaximumNArgs(1)}
	f, out := waypointFlagsOf(c), outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		found, err := waypointsOf(c, f, f.w.Namespace)
		if err != nil {
			return err
		}
		var wanted []install.Gateway
		serve := true
		for _, g := range found {
			if len(args) == 0 || g.Name == args[0] {
				wanted = append(wanted, g)
				serve = serve && g.Programmed
			}
		}
		if len(wanted) == 0 {
			return laptop.WithHint(fmt.Errorf("there is no such waypoint in namespace %s", f.w.Namespace), "culvert waypoint list -A")
		}
		if err := out.write(e.stdout, wanted, func(w io.Writer) error { return printWaypoints(w, wanted) }); err != nil {
			return err
		}
		if !serve {
			return exitStatus(1)
		}
		return nil
	}
	return c
}

func waypointDelete(e *env) *cobra.Command {
	c := &cobra.Command{Use: "delete [NAME...]", Short: "Delete waypoints of a namespace"}
	f := waypointFlagsOf(c)
	var all bool
	c.Flags().BoolVar(&all, "all", false, "all of the namespace")
	c.RunE = func(c *cobra.Command, args []string) error {
		if all != (len(args) == 0) {
			return laptop.WithHint(errors.New("delete wants names, or --all"), "culvert waypoint delete --namespace shop waypoint")
		}
		cluster, err := f.connect()
		if err != nil {
			return err
		}
		return cluster.DeleteWaypoints(c.Context(), f.w.Namespace, args, all, e.stdout)
	}
	return c
}
