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
	fmt.Printf("%-10s %-8s %10s %10s %10s %10s %8s\n", "clients", "churn/s", "pod p50", "pod p99", "policy p50", "policy p99", "CPU")
	for _, n := range []int{1, o.clients} {
		began := time.Now()
		f, err := p.connect(ctx, n, token)
		if err != nil {
			return err
		}
		if err := f.synced(ctx); err != nil {
			f.stop()
			return err
		}
		first := time.Since(began)
		for _, busy := range []bool{false, true} {
			if err := scenario(ctx, o, c, p, f, busy); err != nil {
				f.stop()
				return err
			}
		}
		now, peak := p.memory()
		fmt.Printf("%d clients: first full push to all %.2f s; memory %.0f MB, highest %.0f MB\n", n, first.Seconds(), now, peak)
		f.stop()
	}
	return nil
}

// scenario measures changes one after another while others go on, or none.
func scenario(ctx context.Context, o options, c *cluster, p *plane, f *fleet, busy bool) error {
	rate := 0
	if busy {
		rate = o.churn
		churning, stop := context.WithCancel(ctx)
		defer stop()
		go c.churn(churning)
		time.Sleep(o.settle)
	}
	cpu, began := p.cpu(), time.Now()
	var pods, policies []time.Duration
	for i := range o.samples {
		ns, name := c.podName(i)
		took, err := one(ctx, f, "Kubernetes//Pod/"+ns+"/"+name, func() error { return c.revise(ctx, i) })
		if err != nil {
			return err
		}
		pods = append(pods, took...)
		if took, err = one(ctx, f, namespaceOf(0)+"/"+policyName, func() error { return c.changePolicy(ctx) }); err != nil {
			return err
		}
		policies = append(policies, took...)
	}
	used := float64(p.cpu()-cpu) / float64(time.Since(began)) * 100
	fmt.Printf("%-10d %-8d %10s %10s %10s %10s %7.0f%%\n", len(f.clients), rate,
		quantile(pods, 50), quantile(pods, 99), quantile(policies, 50), quantile(policies, 99), used)
	return nil
}

// one makes a change and returns how long after the API server's answer it was at
// each client.
func one(ctx context.Context, f *fleet, resource string, change func() error) ([]time.Duration, error) {
	came := f.await(resource)
	if err := change(); err != nil {
		return nil, err
	}
	accepted := time.Now()
	select {
	case <-came:
		return f.since(accepted), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(30 * time.Second):
		return nil, fmt.Errorf("%s has not arrived at all clients within 30 s", resource)
	}
}

func quantile(d []time.Duration, percent int) string {
	slices.Sort(d)
	return fmt.Sprintf("%.1f ms", float64(d[(len(d)-1)*percent/100].Microseconds())/1000)
}
