package app

import (
	"context"
	"fmt"

	registration "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/controlplane/admission"
	"github.com/culvert-mesh/culvert/pkg/logging"
)

// admit makes the validating webhook, which every replica serves, and its
// configuration's keeper, which the leader runs. Without an API server nobody asks.
func (a *App) admit() error {
	if a.kube == nil || a.cfg.WebhookListen == "" {
		return nil
	}
	log := logging.Scope(a.log, "admission")
	a.webhook = admission.New(admission.Config{
		Listen: a.cfg.WebhookListen, Certificate: a.identity.certificate, Judge: a.model.Judge, Log: log, Metrics: a.registry,
	})
	config := rest.CopyConfig(a.kube)
	config.RateLimiter, config.QPS, config.Burst = nil, 5, 10
	client, err := registration.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	trial, err := admission.Trial(config, a.cfg.Namespace)
	if err != nil {
		return err
	}
	keeper := admission.NewKeeper(admission.KeeperConfig{
		Configurations: client.ValidatingWebhookConfigurations(), Roots: a.authority.RootsPEM,
		Trial:  trial,
		Policy: a.cfg.WebhookFailurePolicy, Log: log,
	})
	a.led = append(a.led, led{"webhook configuration", func(ctx context.Context) error {
		if _, err := a.webhook.Addr(ctx); err != nil {
			return nil // ctx ended
		}
		return keeper.Run(ctx)
	}})
	return nil
}
