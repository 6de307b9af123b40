package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// measure runs every scenario and prints a table.
func measure(ctx context.Context, o options, c *cluster, p *plane) error {
	token, err := c.token(ctx)
	if err != nil {
		return err
	}
	now, peak := p.memory()
	fmt.Printf("memory without clients: %.0f MB, highest %.0f MB\n", now, peak)
	e, err := c.listen(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-10s %-8s %21s %21s %21s %21s %8s\n", "clients", "churn/s", "pod p50, p99", "policy p50, p99", "API server: pod", "policy", "CPU")
	for _, n := range []int{1, o.clients} {
		if err := with(ctx, o, c, p, e, n, token); err != nil {
			return err
		}
	}
	return nil
}

// with runs the scenarios of n clients.
func with(ctx context.Context, o options, c *cluster, p *plane, e *echo, n int, token string) error {
	began := time.Now()
	f, err := p.connect(ctx, n, token)
	if err != nil {
		return err
	}
	defer f.stop()
	if err := f.synced(ctx); err != nil {
		return err
	}
	first := time.Since(began)
	now, peak := p.memory()
	fmt.Printf("%d clients: first full push to all %.2f s; memory %.0f MB, highest %.0f MB\n", n, first.Seconds(), now, peak)
	for _, busy := range []bool{false, true} {
		if err := scenario(ctx, o, c, p, f, e, busy); err != nil {
			return err
		}
	}
	now, peak = p.memory()
	fmt.Printf("%d clients: memory %.0f MB, highest %.0f MB\n", n, now, peak)
	return replaced(ctx, p, f)
}

// replaced has another control plane take the place of the one that is there, and
// counts what that costs clients that hold everything.
func replaced(ctx context.Context, p *plane, f *fleet) error {
	if err := p.settled(ctx, len(f.clients)); err != nil {
		return err
	}
	before := f.count()
	if err := p.replace(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := p.settled(ctx, len(f.clients)); err != nil {
		return err
	}
	_, peak := p.memory()
	fmt.Printf("%d clients of another replica: up to date %.2f s after it was ready, %d resources sent again; its memory highest %.0f MB\n",
		len(f.clients), time.Since(began).Seconds(), f.count()-before, peak)
	return nil
}

// times are how long changes took: to the clients, and from the API server alone.
type times struct{ clients, server []time.Duration }

// scenario measures changes one after another while others go on, or none.
func scenario(ctx context.Context, o options, c *cluster, p *plane, f *fleet, e *echo, busy bool) error {
	rate := 0
	if busy {
		rate = o.churn
		churning, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() { defer close(ended); c.churn(churning) }()
		defer func() { stop(); <-ended }()
		time.Sleep(o.settle)
	}
	profiled := p.profile(o.profiles, fmt.Sprintf("clients%d-churn%d", len(f.clients), rate))
	cpu, began := p.cpu(), time.Now()
	var pods, policies times
	for i := range o.samples {
		ns, name := c.podName(i)
		if err := one(ctx, f, e, &pods, "Kubernetes//Pod/"+ns+"/"+name, func() (string, error) { return c.revise(ctx, i) }); err != nil {
			return err
		}
		if err := one(ctx, f, e, &policies, namespaceOf(0)+"/"+policyName, func() (string, error) { return c.changePolicy(ctx) }); err != nil {
			return err
		}
	}
	used := float64(p.cpu()-cpu) / float64(time.Since(began)) * 100
	fmt.Printf("%-10d %-8d %21s %21s %21s %21s %7.0f%%\n", len(f.clients), rate,
		quantiles(pods.clients), quantiles(policies.clients), quantiles(pods.server), quantiles(policies.server), used)
	return profiled()
}

// one makes a change and adds how long after the API server's answer it was at each
// client, and when the API server told of it.
func one(ctx context.Context, f *fleet, e *echo, t *times, resource string, change func() (string, error)) error {
	came := f.await(resource)
	version, err := change()
	if err != nil {
		return err
	}
	accepted := time.Now()
	select {
	case <-came:
		t.clients = append(t.clients, f.since(accepted)...)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s has not arrived at all clients within 30 s", resource)
	}
	told, err := e.after(ctx, version, accepted)
	t.server = append(t.server, told)
	return err
}

func quantiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(percent int) float64 { return float64(d[(len(d)-1)*percent/100].Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f ms, %.1f ms", at(50), at(99))
}
