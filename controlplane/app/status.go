package app

import (
	"context"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/status"
	"github.com/culvert-mesh/culvert/pkg/logging"
)

// keepStatus has the leader write what is found about objects into their status,
// once all of them have been judged. Without an API server there is none to write.
func (a *App) keepStatus() error {
	if a.kube == nil {
		return nil
	}
	log := logging.Scope(a.log, "status")
	server, err := status.NewServer(a.kube, log)
	if err != nil {
		return err
	}
	a.statuses = status.NewWriter(status.WriterConfig{API: server, Found: a.found, Keys: a.model.Keys, Log: log, Metrics: a.registry})
	a.led = append(a.led, led{"status", func(ctx context.Context) error {
		select {
		case <-a.first:
		case <-ctx.Done():
			return nil
		}
		return a.statuses.Run(ctx)
	}})
	return nil
}

func (a *App) found(key source.Key) (status.Found, bool) {
	conditions, known := a.model.ConditionsOf(key)
	return status.Found{Conditions: conditions, Addresses: a.model.AddressesOf(key)}, known
}

func (a *App) conditionsOf(key source.Key) []compile.Condition {
	conditions, _ := a.model.ConditionsOf(key)
	return conditions
}

// judged returns the objects whose findings an update may have changed: those that
// were compiled, those whose new version was not even that, and those that are gone.
func judged(u source.Update, changes []model.Change) []source.Key {
	keys := make([]source.Key, 0, len(changes)+len(u.Set)+len(u.Removed))
	for _, c := range changes {
		keys = append(keys, c.Key)
	}
	for _, o := range u.Set {
		keys = append(keys, o.Key())
	}
	return append(keys, u.Removed...)
}
