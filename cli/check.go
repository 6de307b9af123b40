package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
)

func checkCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "check",
		Short: "Can this cluster take the mesh, is the mesh on it healthy? Exit status 1 when not",
		Long: `Can this cluster take the mesh, is the mesh on it healthy? Exit status 1 when not.

Where no mesh is installed, or with --before, only what an install needs is checked.
Each line that is not ok says what to do.`,
		Args: cobra.NoArgs,
	}
	k, out := kubeFlagsOf(c), outputFlag(c)
	k.meshNamespaceFlag(c, "namespace", "n")
	var onlyBefore bool
	c.Flags().BoolVar(&onlyBefore, "before", false, "only what an install needs")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cluster, err := k.connect()
		if err != nil {
			return err
		}
		facts := cluster.Collect(c.Context(), version)
		installed := facts.Installed.Status != ""
		results := install.Check(facts, onlyBefore || !installed)
		worst := install.Worst(results)
		err = out.write(e.stdout, checkReport{worst, installed, results}, func(w io.Writer) error {
			return printChecks(w, results, installed || onlyBefore, worst)
		})
		if err == nil && worst == install.Failed {
			err = exitStatus(1)
		}
		return err
	}
	return c
}

// checkReport is what `culvert check -o json` writes.
type checkReport struct {
	Status    install.Status   `json:"status"` // the gravest
	Installed bool             `json:"installed"`
	Results   []install.Result `json:"results"`
}

func printChecks(w io.Writer, results []install.Result, complete bool, worst install.Status) error {
	for _, r := range results {
		fmt.Fprintf(w, "%-8s %-17s %s\n", r.Status, r.Check, r.Line())
		if r.Fix != "" {
			fmt.Fprintf(w, "%26s → %s\n", "", r.Fix)
		}
	}
	if !complete {
		fmt.Fprintln(w, "the mesh is not installed: culvert install")
	}
	_, err := fmt.Fprintf(w, "%s\n", map[install.Status]string{
		install.OK: "all is well", install.Warning: "it works; see the warnings",
		install.Failed: "not well", install.Unknown: "not everything could be checked",
	}[worst])
	return err
}
