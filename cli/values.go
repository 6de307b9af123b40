package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/charts"
	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
)

// explainValues answers what needs no cluster: which values, profiles and platforms
// there are. It reports whether that was all.
func explainValues(e *env, f *installFlags, print bool) (done bool, err error) {
	if print {
		return true, install.PrintValues(e.stdout)
	}
	for _, choice := range []struct {
		flag, given string
		known       []string
	}{{"profile", f.values.Profile, charts.Profiles()}, {"platform", f.values.Platform, charts.Platforms()}} {
		switch {
		case choice.given == "help":
			fmt.Fprintln(e.stdout, strings.Join(choice.known, "\n"))
			return true, nil
		case choice.given != "" && !slices.Contains(choice.known, choice.given):
			return true, laptop.WithHint(fmt.Errorf("--%s %s: there is no such %[1]s", choice.flag, choice.given), "%s", strings.Join(choice.known, ", "))
		}
	}
	return false, nil
}
