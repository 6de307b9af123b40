package app

import (
	"context"
	"time"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// newStore returns the store in which the node's ztunnels leave what their
// successors need. It keeps sockets of pods that are in the mesh only, so that
// none holds on to the namespace of a pod that has left.
func (a *Agent) newStore() *handover.Store {
	return handover.NewStore(handover.StoreConfig{Log: a.log, Known: a.isMember})
}

func (a *Agent) isMember(uid mesh.PodUID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pods[uid]
	return p != nil && p.member
}

// runStore serves the store from the first snapshot of the pods on.
func (a *Agent) runStore(ctx context.Context) error {
	select {
	case <-a.loaded:
		return a.store.Run(ctx, a.cfg.Handover)
	case <-ctx.Done():
		return nil
	}
}

// foreignCheck is how often it is looked whether sockets are kept for nobody.
const foreignCheck = time.Second

// watchForeign lets go of the sockets when the node has got a ztunnel that does
// not take over any, of another make. It listens beside them (SO_REUSEPORT), and
// the kernel would go on giving them a share of the connections.
func (a *Agent) watchForeign(ctx context.Context) error {
	tick := time.NewTicker(foreignCheck)
	defer tick.Stop()
	before := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := foreign(a.zds.Connected(), a.store.Clients())
		if _, n := a.store.Held(); n > 0 && now && before {
			a.log.Warn("this node's ztunnel does not take over sockets: those that are held are closed", "sockets", n)
			a.store.Clear()
		}
		before = now
	}
}

// foreign reports whether some ztunnel does not use the store, and of those that
// do none accepts any more.
func foreign(connected int, clients []handover.ClientStatus) bool {
	for _, c := range clients {
		if c.State != handover.Draining {
			return false
		}
	}
	return connected > len(clients)
}
