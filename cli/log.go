package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/access"
)

// logFilter says which access lines a person wants.
type logFilter struct {
	pod       string
	namespace string
	node      string
	direction string
	service   string
	errors    bool
}

func logCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "log",
		Short: "Show who talked to whom: the access log of all proxies, merged",
		Long: `Show who talked to whom: the access log of all proxies, merged.

With --failed POD: the latest connections from or to the pod that failed, as its
node's ztunnel remembers them, with how far each got and where its time went.

Bytes are those towards the destination (→) and back (←). REFUSED is a connection of
which nothing was carried, BROKEN one that failed later.

With --level COMPONENT: the component's log levels; with LEVEL or SCOPE=LEVEL as
well, they are changed while it runs, and with "reset" they are as at start.`,
		Example: "  culvert log --errors\n  culvert log --failed shop/frontend\n  culvert log --level ztunnel-node-1 proxy=debug",
		Args:    cobra.ArbitraryArgs,
	}
	from, out := readerFlagsOf(e, c), outputFlag(c)
	var f logFilter
	var follow bool
	var last int
	var failed, level string
	fl := c.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	fl.IntVar(&last, "last", 50, "only so many of the newest lines; 0 = all")
	fl.StringVar(&f.pod, "pod", "", "only lines with a NAMESPACE/NAME that contains this, on either side")
	fl.StringVar(&f.namespace, "namespace", "", "only lines with this namespace on either side")
	fl.StringVar(&f.node, "node", "", "only lines of this node's ztunnel")
	fl.StringVar(&f.direction, "direction", "", "inbound or outbound")
	fl.StringVar(&f.service, "service", "", "only lines whose destination service's name contains this")
	fl.BoolVar(&f.errors, "errors", false, "only what was refused or failed")
	fl.StringVar(&failed, "failed", "", "the latest failed connections of this pod, with timings")
	fl.StringVar(&level, "level", "", "show or change the log levels of a component, or of the ztunnel of a pod's node")
	c.MarkFlagsMutuallyExclusive("failed", "level")
	c.RunE = func(c *cobra.Command, args []string) error {
		if strings.HasPrefix(failed, "-") {
			return laptop.WithHint(fmt.Errorf("--failed %s: want a pod", failed), "culvert log --failed shop/frontend")
		}
		client, err := from.open(c.Context())
		if err != nil {
			return err
		}
		if level != "" {
			return changeLevels(c.Context(), e, out, client, level, args)
		}
		if len(args) > 0 {
			return laptop.WithHint(fmt.Errorf("log takes no argument %q", args[0]), "culvert log --pod %s", args[0])
		}
		if failed != "" {
			return showFailed(c.Context(), e, out, client, failed, last, follow)
		}
		st, err := client.Status(c.Context())
		if err != nil {
			return err
		}
		if err := f.check(st); err != nil {
			return err
		}
		if follow && !f.someone(st) {
			fmt.Fprintf(e.stderr, "no pod has %q in its NAMESPACE/NAME yet: waiting for one\n", f.pod)
		}
		show, err := recordPrinter(e, out)
		if err != nil {
			return err
		}
		shown := 0
		count := func(r access.Record) { shown++; show(r) }
		if cluster, ok := client.(*install.Mesh); ok {
			err = clusterLog(c.Context(), cluster, f, last, follow, count)
		} else {
			err = showLog(c.Context(), client.(*laptop.Client).Dir().Logs(), f, last, follow, count)
		}
		if err == nil && !follow && shown == 0 && !f.someone(st) {
			err = laptop.WithHint(fmt.Errorf("--pod %s: no pod has that in its NAMESPACE/NAME, and no line of the log", f.pod), "culvert ps lists them")
		}
		return err
	}
	return c
}

// recordPrinter returns what prints a record: a line, or an object per line.
func recordPrinter(e *env, out *output) (func(access.Record), error) {
	switch out.format {
	case "text":
		return func(r access.Record) { fmt.Fprintln(e.stdout, r) }, nil
	case "json":
		enc := json.NewEncoder(e.stdout)
		return func(r access.Record) { _ = enc.Encode(r) }, nil
	}
	return nil, out.write(e.stdout, nil, nil)
}

// clusterLog is showLog for the proxies of a cluster, whose logs its nodes keep.
func clusterLog(ctx context.Context, m *install.Mesh, f logFilter, last int, follow bool, show func(access.Record)) error {
	all, err := m.AccessLog(ctx, last)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(r access.Record) bool { return !f.matches(r) })
	if last > 0 && len(all) > last {
		all = all[len(all)-last:]
	}
	for _, r := range all {
		show(r)
	}
	if !follow {
		return nil
	}
	return m.FollowAccessLog(ctx, func(r access.Record) {
		if f.matches(r) {
			show(r)
		}
	})
}

func showLog(ctx context.Context, dir string, f logFilter, last int, follow bool, show func(access.Record)) error {
	all, err := access.Read(dir)
	if err != nil {
		return err
	}
	var wanted []access.Record
	for _, r := range all {
		if f.matches(r) {
			wanted = append(wanted, r)
		}
	}
	if last > 0 && len(wanted) > last {
		wanted = wanted[len(wanted)-last:]
	}
	for _, r := range wanted {
		show(r)
	}
	if follow {
		access.Follow(ctx, dir, func(r access.Record) {
			if f.matches(r) {
				show(r)
			}
		})
	}
	return nil
}

// check refuses values that no line can have.
func (f logFilter) check(st *laptop.Status) error {
	if f.direction != "" && f.direction != "inbound" && f.direction != "outbound" {
		return laptop.WithHint(fmt.Errorf("--direction %s: there is no such direction", f.direction), "inbound or outbound")
	}
	var nodes []string
	for _, n := range st.Nodes {
		nodes = append(nodes, n.Name)
	}
	if f.node != "" && !slices.Contains(nodes, f.node) {
		return laptop.WithHint(fmt.Errorf("--node %s: there is no such node", f.node), "%s", strings.Join(nodes, ", "))
	}
	return nil
}

// someone reports whether there is a pod that lines could be of.
func (f logFilter) someone(st *laptop.Status) bool {
	return f.pod == "" || slices.ContainsFunc(st.Pods, func(p laptop.PodStatus) bool { return strings.Contains(p.Namespace+"/"+p.Name, f.pod) })
}

func (f logFilter) matches(r access.Record) bool {
	switch {
	case f.pod != "" && !strings.Contains(r.SrcNamespace+"/"+r.SrcWorkload, f.pod) && !strings.Contains(r.DstNamespace+"/"+r.DstWorkload, f.pod),
		f.namespace != "" && r.SrcNamespace != f.namespace && r.DstNamespace != f.namespace,
		f.node != "" && r.Component != "ztunnel-"+f.node,
		f.direction != "" && r.Direction != f.direction,
		f.service != "" && !strings.Contains(r.DstService, f.service),
		f.errors && r.Error == "" && r.Status < 400:
		return false
	}
	return true
}

// shownConnections is how many connections the live view has.
const shownConnections = 12

// recentConnections keeps the newest access lines.
type recentConnections struct {
	max  int
	mu   sync.Mutex
	list []string
}

func newRecentConnections(n int) *recentConnections { return &recentConnections{max: n} }

// follow collects until ctx ends.
func (r *recentConnections) follow(ctx context.Context, dir laptop.Dir) {
	access.Follow(ctx, dir.Logs(), func(rec access.Record) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.list = append(r.list, rec.Short()); len(r.list) > r.max {
			r.list = r.list[1:]
		}
	})
}

func (r *recentConnections) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.list...)
}
