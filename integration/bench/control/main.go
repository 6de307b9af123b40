// Command control measures the control plane in a large cluster: what it holds in
// memory, and how long it takes from the API server's yes to the arrival at the
// proxies.
//
//	this program ── objects without kubelets ──▶ API server ── watch ──▶ control plane (a process of its own)
//	      ▲                                                                    │
//	      └──────────── 1 and 50 clients that subscribe as ztunnels do ◀── xDS ┘
//
// Pods are bound to nodes that nobody is; their status is patched here. Every
// change is of one pod's revision or of one policy's rule, and its time begins when
// the API server has answered the patch. All of it shares this machine's cores: the
// API server and etcd included. When the API server tells of a change is measured
// too, by a watch of this program's own: what a change takes beyond that is the
// control plane's part.
//
// Everything is made in namespaces named bench-…, on nodes named bench-…, and is
// removed at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

// options of a run.
type options struct {
	kubeconfig string
	program    string // the control plane's binary
	crds       string // folder of the definitions that policies need
	pods       int
	services   int
	nodes      int
	samples    int           // changes measured in each scenario
	clients    int           // ztunnels in the larger scenario
	churn      int           // pods that change per second in the busy scenarios
	settle     time.Duration // how long a churn runs before it is measured
	keep       bool
	profiles   string // folder for profiles of the control plane; "" = none
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("control", flag.ContinueOnError)
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "`file` that says how to reach an API server, as an administrator")
	f.StringVar(&o.program, "controlplane", "bin/controlplane", "`file` of the control plane")
	f.StringVar(&o.crds, "crds", "charts/base/files/istio", "`folder` of custom resource definitions to apply")
	f.IntVar(&o.pods, "pods", 10_000, "pods, 100 to 20000")
	f.IntVar(&o.services, "services", 1_000, "services, 10 to 5000")
	f.IntVar(&o.nodes, "nodes", 50, "nodes, 1 to 200")
	f.IntVar(&o.samples, "samples", 50, "changes measured in each scenario, 10 to 1000")
	f.IntVar(&o.clients, "clients", 50, "ztunnels in the larger scenario, 1 to 100")
	f.IntVar(&o.churn, "churn", 50, "pods per second that change in the busy scenarios, 1 to 200")
	f.DurationVar(&o.settle, "settle", 2*time.Second, "how long that goes on before it is measured")
	f.BoolVar(&o.keep, "keep", false, "leave the objects for another run")
	f.StringVar(&o.profiles, "profiles", "", "`folder` to put processor and heap profiles of the control plane into")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for name, v := range map[string][3]int{"pods": {o.pods, 100, 20_000}, "services": {o.services, 10, 5_000}, "nodes": {o.nodes, 1, 200},
		"samples": {o.samples, 10, 1_000}, "clients": {o.clients, 1, 100}, "churn": {o.churn, 1, 200}} {
		if v[0] < v[1] || v[0] > v[2] {
			return o, fmt.Errorf("-%s %d: not between %d and %d", name, v[0], v[1], v[2])
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 5000, 5000
	c, err := newCluster(config, o)
	if err != nil {
		return err
	}
	if !o.keep {
		defer c.remove()
	}
	go c.heartbeat(ctx)
	began := time.Now()
	if err := c.fill(ctx); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	fmt.Printf("%d pods, %d services on %d nodes made in %.0f s\n", o.pods, o.services, o.nodes, time.Since(began).Seconds())
	dir, err := os.MkdirTemp("", "bench-control-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := startPlane(ctx, o, filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	defer p.stop()
	return measure(ctx, o, c, p)
}
