// Command bench measures the mesh's L4 path side by side with a plain two-hop
// splice relay, and with any other ztunnel given by path, in one run on the same
// cores.
//
//	client ─▶ ztunnel (node-1) ══ HBONE ══▶ ztunnel (node-2) ─▶ server     each ztunnel under test
//	client ─▶ relay   (node-1) ──  TCP  ──▶ relay   (node-2) ─▶ server     what is possible at all
//
// Every path runs in a mesh of its own made by `culvert up`, with the same pods
// and the same load. Rounds alternate between the paths, so that noise falls on
// all alike, and the table gives medians and their ratios to the relay's. Every
// load is bounded in connections and in time.
//
// The same binary is the orchestrator, the load (bench load), the server (bench
// server) and the relay (bench relay); the last three run inside pods.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "server":
			return serverMain(ctx, args[1:])
		case "relay":
			return relayMain(ctx, args[1:])
		case "load":
			return loadMain(ctx, args[1:])
		}
	}
	return compareMain(ctx, args)
}

// options of the orchestrator.
type options struct {
	culvert  string        // the culvert binary
	ztunnel  string        // our ztunnel
	peer     string        // another ztunnel to measure in the same run, or ""
	rounds   int           // rounds of every scenario
	duration time.Duration // of one scenario of one round
	idle     int           // idle connections to open
	stalled  int           // connections whose servers do not read
	growth   growth        // how large the mesh gets; zero = not measured
	only     string        // run scenarios whose name contains this
}

func parseOptions(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.culvert, "culvert", "bin/culvert", "culvert binary that brings the meshes up")
	f.StringVar(&o.ztunnel, "ztunnel", "bin/ztunnel", "ztunnel binary under test")
	f.StringVar(&o.peer, "peer", "", "another ztunnel binary to measure in the same run")
	f.IntVar(&o.rounds, "rounds", 3, "rounds of every scenario, 1 to 20")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "length of one scenario, 1s to 30s")
	f.IntVar(&o.idle, "idle", 5000, "idle connections to open, 1 to 5000")
	f.IntVar(&o.stalled, "stalled", 1000, "connections whose servers do not read, 1 to 1000; 0 = not measured")
	f.IntVar(&o.growth.pods, "pods", 200, "pods on one node whose cost is compared with 1 pod's, up to 200; 0 = not measured")
	f.IntVar(&o.growth.workloads, "workloads", 20000, "workloads whose cost is compared with 1,000, up to 200000; 0 = not measured")
	f.IntVar(&o.growth.policies, "policies", 1000, "policies whose cost is compared with 1, up to 10000; 0 = not measured")
	f.StringVar(&o.only, "only", "", "run only the scenarios whose name contains this")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case o.rounds < 1 || o.rounds > 20:
		return o, fmt.Errorf("-rounds %d: want 1 to 20", o.rounds)
	case o.duration < time.Second || o.duration > 30*time.Second:
		return o, fmt.Errorf("-duration %v: want 1s to 30s", o.duration)
	case o.idle < 1 || o.idle > 5000:
		return o, fmt.Errorf("-idle %d: want 1 to 5000", o.idle)
	case o.stalled < 0 || o.stalled > 1000:
		return o, fmt.Errorf("-stalled %d: want 0 to 1000", o.stalled)
	case !o.growth.valid():
		return o, fmt.Errorf("-pods %d -workloads %d -policies %d: want 0 to 200, 200000 and 10000", o.growth.pods, o.growth.workloads, o.growth.policies)
	}
	return o, nil
}
