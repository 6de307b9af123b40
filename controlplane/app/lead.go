package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"

	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/culvert-mesh/culvert/controlplane/lease"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// led is a part that runs on one replica only: on the one that holds the Lease,
// from when it has it until it loses it, and perhaps again. run returns soon after
// its context ends, and leaves nothing behind that still acts.
type led struct {
	name string
	run  func(context.Context) error
}

// lead runs what only one replica runs, until ctx ends.
func (a *App) lead(ctx context.Context) error {
	var g run.Group
	for _, l := range a.led {
		g.Add(l.name, l.run)
	}
	return g.Run(ctx)
}

// elect calls lead while this replica is the one. Without an API server, or
// without a Lease, there is no other.
func (a *App) elect(ctx context.Context) error {
	if a.kube == nil || a.cfg.Lease == "" {
		return a.lead(ctx)
	}
	leases, err := coordination.NewForConfig(a.ownLimit(5, 10))
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		name = "replica"
	}
	return lease.New(lease.Config{
		Leases: leases, Namespace: a.cfg.Namespace, Name: a.cfg.Lease,
		Identity: cmp.Or(a.cfg.Replica, name) + "_" + rand.Text()[:8], // unlike that of the container before it
		Log:      logging.Scope(a.log, "lease"), Metrics: a.registry,
	}).Run(ctx, a.lead)
}
