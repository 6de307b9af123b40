//go:build kube

package installed

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// writeTable writes the rows as a document.
func writeTable(rows []*row, away time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# What is lost when something breaks, on Kubernetes

Written by `+"`make faults AWAY=%v`"+` on %s: a real cluster of two nodes (`+"`integration/kube`"+`), the mesh installed from images by
`+"`culvert install`"+`, STRICT mutual TLS. From a pod on node 1, by ClusterIP: %d new connections a second to an application of three replicas
on both nodes, and 16 streams of 20 messages a second to a pod on node 2. A new connection is one message and its answer. What is away is
away for %v. Everything ran on %d cores that the cluster, both nodes, the load and the capture share (load average at the end %s). Upstream's
figures were measured on another real two-node cluster.

The wire between the nodes was read during every row: no message in the clear, but while the namespace was unlabelled, where it has to be.

| event | upstream: new connections failed · streams broken | ours, to reach | measured: new connections failed · streams broken | measured beside it | p99, slowest new connection | reached |
|---|---|---|---|---|---|---|
`, away, time.Now().UTC().Format("2006-01-02"), *faultRate, away, runtime.NumCPU(), loadAverage())
	for _, r := range rows {
		if r.report == nil {
			fmt.Fprintf(&b, "| %s | %s | %s | did not come to an end | | | no |\n", r.name, r.upstream, r.ours)
			continue
		}
		rep, lost, reached := r.report, "", "yes"
		if rep.Failed+rep.Broken > 0 {
			lost = " (" + rep.Reasons() + ")"
		}
		if missed := append(slices.Clip(r.missed), r.late...); len(missed) > 0 {
			reached = "**no**: " + cell(missed)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d of %d · %d%s | %s | %s, %s | %s |\n", r.name, r.upstream, r.ours,
			rep.Failed, rep.Connections, rep.Broken, lost, cell(r.notes), short(rep.P99), short(rep.Slowest), reached)
	}
	b.WriteString(`
- **In flight** are connections whose message was on its way through what was killed or ended at once; see [faults.md](faults.md).
- **Labels.** Inbound plaintext is the last that is captured of a pod that joins, two seconds after the node's last one (ten at most), and the
  first that is let go of one that leaves: a STRICT server refuses no client whose turn comes a moment later.
- **Clocks** are those of running programs, moved by ` + "`integration/clock`" + `: node 1's are its ztunnel's, agent's, kubelet's and containerd's.
- **API server away.** Pods that are made right after its return wait for kubelets and controllers, which come back at intervals of their own.
`)
	b.WriteString("- The idle cost of the mesh, the last row of the table that these are compared with, is measured by `make bench`.\n")
	return b.String()
}

// cell is a list as a table's cell.
func cell(list []string) string {
	return strings.NewReplacer("|", "/", "\n", " ").Replace(strings.Join(list, "; "))
}

func loadAverage() string {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(content))[0]
}
