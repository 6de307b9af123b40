package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
)

// defaultName is the mesh that verbs mean when --name is not given.
const defaultName = "default"

// nameFlag adds --name, whose default $CULVERT_NAME can change.
func nameFlag(e *env, c *cobra.Command) *string {
	return c.Flags().String("name", meshName(e), "which mesh of this machine")
}

func meshName(e *env) string { return cmp.Or(pod.Getenv(e.environ, "CULVERT_NAME"), defaultName) }

// atLeastOne refuses to run a verb without arguments, and says what it wants.
func atLeastOne(wants, hint string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return laptop.WithHint(errors.New(wants), "%s", hint)
		}
		return nil
	}
}

// exactly is atLeastOne for a verb that takes n arguments.
func exactly(n int, wants, hint string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return laptop.WithHint(errors.New(wants), "%s", hint)
		}
		return nil
	}
}

// output is the -o flag of reading verbs.
type output struct{ format string }

func outputFlag(c *cobra.Command) *output {
	o := new(output)
	c.Flags().StringVarP(&o.format, "output", "o", "text", "output format: text or json")
	return o
}

// write writes v as JSON, or calls text.
func (o *output) write(w io.Writer, v any, text func(io.Writer) error) error {
	switch o.format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "text":
		return text(w)
	}
	return laptop.WithHint(fmt.Errorf("-o %s: unknown output format", o.format), "use -o text or -o json")
}

// table writes aligned columns.
func table(w io.Writer, header string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(strings.Fields(header), "\t"))
	for _, r := range rows {
		for i := range r {
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}
