package app

import (
	"sync"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// certificates is what prefetch asks for.
type certificates interface {
	Prefetch(mesh.Identity)
	Forget(mesh.Identity)
}

// prefetch has the certificates of the node's meshed workloads ready before the
// first connection needs one, and lets go of those that nobody needs any more.
type prefetch struct {
	certs  certificates
	node   string
	cancel func()

	mu     sync.Mutex
	needed map[mesh.Identity]int
	local  map[mesh.UID]mesh.Identity
}

// newPrefetch follows the store until close.
func newPrefetch(store *workloads.Store, c certificates, node string) *prefetch {
	p := &prefetch{
		certs:  c,
		node:   node,
		needed: map[mesh.Identity]int{},
		local:  map[mesh.UID]mesh.Identity{},
	}
	p.cancel = store.Subscribe(p.changed)
	return p
}

func (p *prefetch) close() { p.cancel() }

func (p *prefetch) changed(c workloads.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range c.RemovedWorkloads {
		p.dropLocked(w.UID)
	}
	for _, w := range c.Workloads {
		p.takeLocked(w)
	}
}

func (p *prefetch) takeLocked(w *mesh.Workload) {
	wanted := p.node != "" && w.Node == p.node && (w.Protocol == mesh.HBONE || w.NativeTunnel)
	old, had := p.local[w.UID]
	id := w.Identity()
	switch {
	case wanted && had && old == id:
		return
	case wanted:
		p.local[w.UID] = id
		if p.needed[id]++; p.needed[id] == 1 {
			p.certs.Prefetch(id)
		}
		if had {
			p.releaseLocked(old)
		}
	case had:
		delete(p.local, w.UID)
		p.releaseLocked(old)
	}
}

func (p *prefetch) dropLocked(uid mesh.UID) {
	if id, ok := p.local[uid]; ok {
		delete(p.local, uid)
		p.releaseLocked(id)
	}
}

func (p *prefetch) releaseLocked(id mesh.Identity) {
	if p.needed[id]--; p.needed[id] == 0 {
		delete(p.needed, id)
		p.certs.Forget(id)
	}
}
