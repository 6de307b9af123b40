package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// defaultName is the mesh that verbs mean when --name is not given.
const defaultName = "default"

// nameFlag adds --name.
func nameFlag(c *cobra.Command) *string {
	return c.Flags().String("name", defaultName, "which mesh of this machine")
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
