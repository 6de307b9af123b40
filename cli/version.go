package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func versionCommand(e *env) *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Show the version of this program", Args: cobra.NoArgs}
	out := outputFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		v := map[string]string{"version": version, "go": runtime.Version()}
		return out.write(e.stdout, v, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "culvert %s (%s)\n", version, runtime.Version())
			return err
		})
	}
	return c
}
