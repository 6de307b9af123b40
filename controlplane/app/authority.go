package app

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/controlplane/ca"
	"github.com/culvert-mesh/culvert/controlplane/ca/secret"
	"github.com/culvert-mesh/culvert/controlplane/ca/trust"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/logging"
)

// openAuthority opens the certificate authority: in Secrets where there is an API
// server, so that all replicas have it, else in a folder.
func (a *App) openAuthority() error {
	log := logging.Scope(a.log, "ca")
	if a.kube == nil || a.cfg.State != "" {
		authority, err := selfsigned.NewAuthority(a.cfg.State, selfsigned.WithLog(log))
		if err != nil {
			return fmt.Errorf("open certificate authority: %w", err)
		}
		a.authority, a.keepAuthority = authority, authority.Run
	} else {
		client, err := kubernetes.NewForConfig(a.ownLimit(5, 10))
		if err != nil {
			return fmt.Errorf("API server: %w", err)
		}
		a.authority = selfsigned.New(selfsigned.WithLog(log))
		keeper := secret.New(secret.Config{
			Client: client, Namespace: a.cfg.Namespace, Plugged: a.cfg.CASecret, TrustDomain: a.cfg.Mesh.TrustDomain,
			Authority: a.authority, Log: log, Metrics: a.registry,
		})
		a.keepAuthority = keeper.Run
		a.led = append(a.led, led{"certificate authority", keeper.Lead})
	}
	ca.ObserveAuthority(a.registry, a.authority)
	return nil
}

// spreadTrust has the leader keep the mesh's roots in every namespace. Without an
// API server there are none.
func (a *App) spreadTrust() error {
	if a.kube == nil || a.cfg.NoTrust {
		return nil
	}
	client, err := kubernetes.NewForConfig(a.ownLimit(100, 200))
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	bundles := trust.New(trust.Config{Client: client, Authority: a.authority, Log: logging.Scope(a.log, "trust"), Metrics: a.registry})
	a.led = append(a.led, led{"trust bundle", bundles.Run})
	return nil
}

// awaitAuthority opens the readiness gate once something can be signed.
func (a *App) awaitAuthority(ctx context.Context) error {
	for {
		changed := a.authority.Changed()
		if a.authority.Material() != nil {
			a.signs()
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// ownLimit returns how to reach the API server with a limit of its own, in calls a
// second: what must not wait for token reviews, or make them wait.
func (a *App) ownLimit(qps float32, burst int) *rest.Config {
	c := rest.CopyConfig(a.kube)
	c.RateLimiter, c.QPS, c.Burst = nil, qps, burst
	return c
}

// newCA returns the certificate service. With an API server it goes by the pods
// that there are; who comes on the word of another replica may be a moment ahead.
func (a *App) newCA(auth ca.Authenticator) *ca.Server {
	cfg := ca.Config{
		Auth: auth, Signer: a.authority, Rule: a.model, TrustDomain: a.cfg.Mesh.TrustDomain,
		TrustedNodeAccounts: a.cfg.NodeAccounts, Log: logging.Scope(a.log, "ca"), Metrics: a.registry,
	}
	if a.kube != nil {
		cfg.Pods, cfg.Lag, cfg.Ready = a.model, replicaLag, a.first
	}
	return ca.New(cfg)
}

// replicaLag is how far replicas are apart at most in what they know, unless one is
// cut off from the API server.
const replicaLag = time.Second
