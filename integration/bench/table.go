package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// scenario is one row group of the table.
type scenario struct {
	name  string
	mode  string
	conns int
}

var scenarios = []scenario{
	{"throughput, 1 connection", loadThroughput, 1},
	{"throughput, 8 connections", loadThroughput, 8},
	{"requests, 1 connection", loadRequests, 1},
	{"requests, 64 connections", loadRequests, 64},
	{"new connections, 16 clients", loadConnections, 16},
	{"99 busy connections", loadRequests, 99},
	{"99 beside a stalled one", loadBeside, 100},
}

// metric is one figure of a scenario: where it comes from and how it reads.
type metric struct {
	name  string
	unit  string
	value func(sample) float64
}

// sample is one round of one scenario on one path.
type sample struct {
	Result
	cpuSeconds float64 // of both proxies
	written    written // by both proxies
}

func (s scenario) metrics() []metric {
	cpuPer := func(unit string, n func(sample) float64) metric {
		return metric{"CPU of both proxies", unit, func(s sample) float64 { return s.cpuSeconds / n(s) }}
	}
	if s.mode == loadThroughput {
		return []metric{
			{"rate", "Gbit/s", func(s sample) float64 { return float64(s.Bytes) * 8 / 1e9 / s.Seconds }},
			cpuPer("s/GB", func(s sample) float64 { return float64(s.Bytes) / 1e9 }),
			{"in one write", "kB", func(s sample) float64 { return float64(s.written.bytes) / 1e3 / float64(max(1, s.written.calls)) }},
		}
	}
	return []metric{
		{"rate", "/s", func(s sample) float64 { return float64(s.Ops) / s.Seconds }},
		{"p50", "ms", func(s sample) float64 { return s.P50 }},
		{"p99", "ms", func(s sample) float64 { return s.P99 }},
		cpuPer("s/1000", func(s sample) float64 { return float64(s.Ops) / 1000 }),
		{"failed", "", func(s sample) float64 { return float64(s.Errors) }},
	}
}

// figures is one sample as a line.
func (s scenario) figures(one sample) string {
	var all []string
	for _, m := range s.metrics() {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", m.name, number(m.value(one)), m.unit)))
	}
	return strings.Join(all, ", ")
}

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	if len(xs) == 0 {
		return 0
	}
	if n := len(xs); n%2 == 0 {
		return (xs[n/2-1] + xs[n/2]) / 2
	}
	return xs[len(xs)/2]
}

// memory is what a path's proxies hold, in bytes of resident memory, both summed.
type memory struct {
	rest uint64 // after start
	own  uint64 // of it, what no file backs
	idle uint64 // with the idle connections open, before any other load

	conns int // idle connections

	before, stalled uint64 // before and while stalled connections are open
}

// printTable writes medians, and each path's ratio to the first one's.
func printTable(w io.Writer, paths []string, runs []scenario, samples map[string]map[string][]sample, mem map[string]memory, idle, stalled int) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprint(tw, "scenario\tfigure")
	for i, p := range paths {
		fmt.Fprintf(tw, "\t%s", p)
		if i > 0 {
			fmt.Fprint(tw, "\t÷ relay")
		}
	}
	fmt.Fprintln(tw)
	for _, s := range runs {
		for _, m := range s.metrics() {
			row := make([]float64, len(paths))
			for i, p := range paths {
				row[i] = median(values(samples[s.name][p], m.value))
			}
			printRow(tw, s.name, m.name+" "+m.unit, row)
		}
	}
	rest, own, each := make([]float64, len(paths)), make([]float64, len(paths)), make([]float64, len(paths))
	for i, p := range paths {
		rest[i] = float64(mem[p].rest) / 2 / 1e6
		own[i] = float64(mem[p].own) / 2 / 1e6
		each[i] = (float64(mem[p].idle) - float64(mem[p].rest)) / 2 / float64(max(1, mem[p].conns)) / 1e3
	}
	printRow(tw, "memory", "at rest, MB per proxy", rest)
	printRow(tw, "memory", "of it not backed by files", own)
	printRow(tw, "memory", fmt.Sprintf("kB per idle connection per proxy, %d open", idle), each)
	if stalled == 0 {
		return
	}
	for i, p := range paths {
		each[i] = (float64(mem[p].stalled) - float64(mem[p].before)) / 2 / 1e6
	}
	printRow(tw, "memory", fmt.Sprintf("MB more per proxy, %d stalled connections", stalled), each)
}

func values(samples []sample, f func(sample) float64) []float64 {
	var xs []float64
	for _, s := range samples {
		xs = append(xs, f(s))
	}
	return xs
}

func printRow(w io.Writer, scenario, figure string, row []float64) {
	fmt.Fprintf(w, "%s\t%s", scenario, figure)
	for i, x := range row {
		fmt.Fprintf(w, "\t%s", number(x))
		if i > 0 {
			ratio := "-"
			if row[0] > 0 {
				ratio = fmt.Sprintf("%.2f", x/row[0])
			}
			fmt.Fprintf(w, "\t%s", ratio)
		}
	}
	fmt.Fprintln(w)
}

func number(x float64) string {
	switch {
	case x >= 1000:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.3f", x)
}
