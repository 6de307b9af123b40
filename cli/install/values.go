package install

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/getter"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/charts"
	"github.com/culvert-mesh/culvert/cli/laptop"
)

// ValueFlags are where a person's values come from, weakest first: the profile,
// the platform, files, and single values.
type ValueFlags struct {
	Platform string
	Profile  string
	Files    []string
	Set      []string
	SetText  []string
}

// Given reports whether any value is given.
func (v ValueFlags) Given() bool {
	return v.Platform != "" || v.Profile != "" || len(v.Files)+len(v.Set)+len(v.SetText) > 0
}

// Merge returns the values.
func (v ValueFlags) Merge() (map[string]any, error) {
	merged := map[string]any{}
	if v.Profile != "" {
		content, err := charts.Profile(v.Profile)
		if err != nil {
			return nil, laptop.WithHint(fmt.Errorf("--profile: %w", err), "profiles: %s", strings.Join(charts.Profiles(), ", "))
		}
		if err := yaml.Unmarshal(content, &merged); err != nil {
			return nil, fmt.Errorf("profile %s: %w", v.Profile, err)
		}
	}
	if v.Platform != "" {
		merged = loader.MergeMaps(merged, map[string]any{"global": map[string]any{"platform": v.Platform}})
	}
	opts := values.Options{ValueFiles: v.Files, Values: v.Set, StringValues: v.SetText}
	own, err := opts.MergeValues(getter.Providers{})
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, laptop.WithHint(fmt.Errorf("values: %w", err), "-f wants a file of YAML")
		}
		return nil, laptop.WithHint(fmt.Errorf("values: %w", err), "--set KEY=VALUE, such as --set global.logLevel=debug; culvert install --help lists where values come from")
	}
	return loader.MergeMaps(merged, own), nil
}

// Umbrella is the chart that comes with this program, whole.
func Umbrella() (*chart.Chart, error) { return charts.Load(releaseName) }

// PrintValues writes the values of the chart and of its parts, as their authors
// commented them: what a file for -f may have.
func PrintValues(w io.Writer) error {
	c, err := Umbrella()
	if err != nil {
		return err
	}
	for _, part := range append([]*chart.Chart{c}, c.Dependencies()...) {
		indent := ""
		if part != c {
			fmt.Fprintf(w, "\n%s:\n", part.Name())
			indent = "  "
		}
		for _, f := range part.Raw {
			if f.Name != "values.yaml" {
				continue
			}
			for line := range strings.Lines(string(f.Data)) {
				fmt.Fprintln(w, strings.TrimRight(indent+line, " \n"))
			}
		}
	}
	return nil
}
