package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// growth is how large meshes get whose cost per connection is compared with that
// of a small one.
type growth struct{ pods, workloads, policies int }

func (g growth) valid() bool {
	return g.pods >= 0 && g.pods <= 200 && g.workloads >= 0 && g.workloads <= 200_000 && g.policies >= 0 && g.policies <= 10_000
}

// stage is one size of the mesh.
type stage struct {
	name      string
	base      string // the stage that it is compared with; "" = it is one
	pods      int    // on the client's node, the client included
	workloads int    // beside the mesh's own
	policies  int    // that concern neither the client nor the server
}

// stages lists what to compare; nothing without growth.
func (g growth) stages() (out []stage) {
	if g.pods > 0 {
		out = append(out, stage{name: "1 pod", pods: 1})
		for _, n := range []int{10, g.pods} {
			if n > 1 && n <= g.pods && out[len(out)-1].pods < n {
				out = append(out, stage{name: fmt.Sprintf("%d pods", n), base: "1 pod", pods: n})
			}
		}
	}
	if g.workloads > 0 {
		out = append(out, stage{name: "1000 workloads", workloads: 1000},
			stage{name: fmt.Sprintf("%d workloads in all", g.workloads), base: "1000 workloads", workloads: g.workloads})
	}
	if g.policies > 0 {
		out = append(out, stage{name: "1 policy", policies: 1},
			stage{name: fmt.Sprintf("%d policies in all", g.policies), base: "1 policy", policies: g.policies})
	}
	return out
}

// connecting is the load of every stage.
var connecting = scenario{"new connections, 16 clients", loadConnections, 16}

// grown is what was measured of each stage.
type grown struct {
	stages  []stage
	samples map[string][]sample
}

// grow measures new connections in a mesh of each size. The meshes of one
// comparison are up together and take turns.
func (b *bench) grow(ctx context.Context, dir string) (grown, error) {
	g := grown{samples: map[string][]sample{}}
	if strings.Contains(connecting.name, b.only) {
		g.stages = b.growth.stages()
	}
	for rest := g.stages; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].base != "" {
			n++
		}
		if err := b.growTogether(ctx, dir, rest[:n], g.samples); err != nil {
			return g, err
		}
		rest = rest[n:]
	}
	return g, nil
}

func (b *bench) growTogether(ctx context.Context, dir string, stages []stage, samples map[string][]sample) error {
	ours := b.paths[1]
	paths := make([]*path, len(stages))
	for i, s := range stages {
		fmt.Fprintf(os.Stderr, "bench: starting a mesh of %s\n", s.name)
		p := &path{name: s.name, mesh: meshName(fmt.Sprint("grown", i)), culvert: ours.culvert, self: ours.self, extra: max(0, s.pods-1)}
		defer p.down()
		var err error
		if p.ztunnel, err = s.wrap(ours.ztunnel, filepath.Join(dir, p.mesh)); err != nil {
			return err
		}
		if err := p.up(ctx, dir); err != nil {
			return err
		}
		paths[i] = p
	}
	for round := range b.rounds {
		for i, p := range paths {
			fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d, %s\n", connecting.name, round+1, b.rounds, p.name)
			one, err := p.measure(ctx, connecting, b.duration)
			if err != nil {
				return err
			}
			samples[stages[i].name] = append(samples[stages[i].name], one)
		}
	}
	return nil
}

// wrap returns a program that is the ztunnel with the stage's workloads and
// policies known to it from the start, beside the control plane's.
func (s stage) wrap(ztunnel, base string) (string, error) {
	if s.workloads == 0 && s.policies == 0 {
		return ztunnel, nil
	}
	known, program := base+"-known.yaml", base+"-ztunnel"
	if err := os.WriteFile(known, s.known(), 0o644); err != nil {
		return "", err
	}
	script := fmt.Sprintf("#!/bin/sh\nLOCAL_XDS_PATH=%s exec %s \"$@\"\n", known, ztunnel)
	return program, os.WriteFile(program, []byte(script), 0o755)
}

// known is the stage's workloads and policies in the form of a local file: ten
// workloads to a service, a hundred namespaces.
func (s stage) known() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "workloads:")
	for i := range s.workloads {
		ns, app := fmt.Sprint("ns-", i/10%100), fmt.Sprint("app-", i/10)
		fmt.Fprintf(&b, "- {uid: Kubernetes//Pod/%[1]s/%[2]s-%[3]d, name: %[2]s-%[3]d, namespace: %[1]s, workloadIps: [10.%[4]d.%[5]d.%[6]d], "+
			"protocol: HBONE, trustDomain: cluster.local, serviceAccount: %[2]s, node: other-%[7]d, workloadName: %[2]s, canonicalName: %[2]s, "+
			"clusterId: Kubernetes, services: {%[1]s/%[2]s.%[1]s.svc.cluster.local: {80: 8080}, %[1]s/%[2]s-metrics.%[1]s.svc.cluster.local: {90: 9090}}}\n",
			ns, app, i, 128+i>>16, i>>8&255, i&255, i%1000)
	}
	fmt.Fprintln(&b, "policies:")
	for i := range s.policies {
		fmt.Fprintf(&b, "- {name: policy-%d, namespace: ns-%d, scope: %s, action: Allow, rules: [[[{principals: [!Exact cluster.local/ns/ns-%d/sa/client]}]]]}\n",
			i, i%100, [...]string{"Namespace", "WorkloadSelector"}[i%2], i%100)
	}
	return b.Bytes()
}

// print writes each stage's cost and its ratio to that of the stage it grew from.
func (g grown) print(w io.Writer) error {
	if len(g.stages) == 0 {
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nnew connections in a mesh of\tCPU of both proxies s/1000\t÷ smallest\tp99 ms\t÷ smallest\tfailed")
	cost := func(s sample) float64 { return s.cpuSeconds * 1000 / float64(s.Ops) }
	late := func(s sample) float64 { return s.P99 }
	for _, s := range g.stages {
		now := g.samples[s.name]
		before := now
		if s.base != "" {
			before = g.samples[s.base]
		}
		c, l := median(values(now, cost)), median(values(now, late))
		fmt.Fprintf(tw, "%s\t%s\t%.2f\t%s\t%.2f\t%s\n", s.name, number(c), c/median(values(before, cost)),
			number(l), l/median(values(before, late)), number(median(values(now, func(s sample) float64 { return float64(s.Errors) }))))
	}
	return tw.Flush()
}
