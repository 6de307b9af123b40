package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/handover"
)

func psCommand(e *env) *cobra.Command {
	c := &cobra.Command{Use: "ps", Short: "Show nodes, pods, services and components", Args: cobra.NoArgs}
	from, out := readerFlagsOf(e, c), outputFlag(c)
	namespaces := namespacesFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		st, err := from.part(c.Context(), *namespaces)
		if err != nil {
			return err
		}
		return out.write(e.stdout, st, func(w io.Writer) error { return printStatus(w, st) })
	}
	return c
}

func namespacesFlag(c *cobra.Command) *[]string {
	return c.Flags().StringSlice("namespace", nil, "only pods, services and configuration of this namespace (repeatable)")
}

// only leaves what is in some namespaces, and what is in none; with no name, all.
func only(st *laptop.Status, namespaces []string) {
	if len(namespaces) == 0 {
		return
	}
	other := func(namespace string) bool { return !slices.Contains(namespaces, namespace) }
	st.Pods = slices.DeleteFunc(st.Pods, func(p laptop.PodStatus) bool { return other(p.Namespace) })
	st.Services = slices.DeleteFunc(st.Services, func(s laptop.ServiceStatus) bool { return other(s.Namespace) })
	st.Config.Problems = slices.DeleteFunc(st.Config.Problems, func(p folder.Problem) bool {
		key := strings.Split(p.Object, "/") // Kind/namespace/name
		return len(key) == 3 && other(key[1])
	})
	st.NotReady = slices.DeleteFunc(st.NotReady, func(what string) bool {
		pod, ok := strings.CutPrefix(what, "pod ")
		namespace, _, _ := strings.Cut(pod, "/")
		return ok && other(namespace)
	})
	st.Ready = len(st.NotReady) == 0
}

func printStatus(w io.Writer, st *laptop.Status) error {
	if err := table(w, "NODE ADDRESS PODS", nodeRows(st)); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := table(w, "POD NODE ADDRESS MESH READY RESTARTS AGE IDENTITY", podRows(st)); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := table(w, "SERVICE ADDRESS PORTS ENDPOINTS", serviceRows(st)); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if err := table(w, "COMPONENT STATE PROCESS RESTARTS REPLACED SINCE LAST-EXIT", componentRows(st)); err != nil {
		return err
	}
	if rows := proxyRows(st, time.Now()); len(rows) > 0 {
		fmt.Fprintln(w)
		if err := table(w, "ZTUNNEL PROCESS STATE OPEN TIME-LEFT KNOWS", rows); err != nil {
			return err
		}
	}
	for _, p := range problems(st) {
		fmt.Fprintln(w, "! "+p)
	}
	return nil
}

// proxyRows are the ztunnels of which more is to be said than that they serve:
// those that drain or start, and those whose knowledge is not current.
func proxyRows(st *laptop.Status, now time.Time) (rows [][]string) {
	for _, p := range st.Proxies {
		if p.State == handover.Serving && !p.Away && !p.Restored {
			continue
		}
		left, knows := "-", "current"
		if !p.Until.IsZero() {
			left = span(p.Until.Sub(now))
		}
		switch {
		case p.Away && p.Contact.IsZero():
			knows = "nothing-yet"
		case p.Away:
			knows = span(now.Sub(p.Contact)) + "-old"
		}
		if p.Restored {
			knows += ",from-predecessor"
		}
		rows = append(rows, []string{"ztunnel-" + p.Node, strconv.Itoa(p.PID), string(p.State), strconv.Itoa(p.Open), left, knows})
	}
	return rows
}

func nodeRows(st *laptop.Status) (rows [][]string) {
	for _, n := range st.Nodes {
		addr := ""
		if len(n.Addrs) > 0 {
			addr = n.Addrs[0]
		}
		rows = append(rows, []string{n.Name, addr, strconv.Itoa(n.Pods)})
	}
	return rows
}

func podRows(st *laptop.Status) (rows [][]string) {
	for _, p := range st.Pods {
		ready := "no"
		switch {
		case p.Stopping:
			ready = "stopping"
		case p.Ready:
			ready = "yes"
		}
		rows = append(rows, []string{p.Namespace + "/" + p.Name, p.Node, p.Addrs[0], string(p.Mesh), ready,
			strconv.Itoa(p.Restarts), age(p.Created), p.Identity})
	}
	return rows
}

func serviceRows(st *laptop.Status) (rows [][]string) {
	for _, s := range st.Services {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, strconv.Itoa(int(p)))
		}
		addr := "headless"
		if len(s.Addrs) > 0 {
			addr = s.Addrs[0]
		}
		rows = append(rows, []string{s.Namespace + "/" + s.Name, addr, strings.Join(ports, ","), strconv.Itoa(s.Endpoints)})
	}
	return rows
}

func componentRows(st *laptop.Status) (rows [][]string) {
	for _, c := range st.Components {
		rows = append(rows, []string{c.Name, string(c.State), strconv.Itoa(c.PID), strconv.Itoa(c.Restarts), strconv.Itoa(c.Replaced),
			age(c.Since), strings.ReplaceAll(c.LastExit, " ", "-")})
	}
	return rows
}

// problems are what a person should know, whatever part found it.
func problems(st *laptop.Status) []string {
	list := append([]string{}, st.Problems...)
	for _, p := range st.Config.Problems {
		list = append(list, p.String())
	}
	for _, p := range st.Pods {
		if p.Message != "" && !p.Stopping {
			list = append(list, fmt.Sprintf("pod %s/%s: %s", p.Namespace, p.Name, p.Message))
		}
	}
	return list
}

// age is how long ago t was.
func age(t time.Time) string { return span(time.Since(t)) }

// span is a duration in the one unit that matters.
func span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
