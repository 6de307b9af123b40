package workloads

import (
	"sync"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Names counts which workload names exist, for telemetry that outlives pods. It is
// safe for concurrent use.
type Names struct {
	cancel func()

	mu    sync.Mutex
	pods  map[workloadName]int
	byUID map[mesh.UID]workloadName
}

// workloadName is what pods of one Deployment, say, have in common.
type workloadName struct{ namespace, name string }

// NewNames follows the changes of a store from now on until Close.
func NewNames(store *Store) *Names {
	n := &Names{pods: map[workloadName]int{}, byUID: map[mesh.UID]workloadName{}}
	n.cancel = store.Subscribe(n.changed)
	return n
}

// Close stops following. It may be called again.
func (n *Names) Close() { n.cancel() }

func (n *Names) changed(c Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range c.RemovedWorkloads {
		n.uncountLocked(w.UID)
	}
	for _, w := range c.Workloads {
		n.uncountLocked(w.UID)
		name := workloadName{w.Namespace, w.WorkloadName}
		n.byUID[w.UID] = name
		n.pods[name]++
	}
}

func (n *Names) uncountLocked(uid mesh.UID) {
	name, ok := n.byUID[uid]
	if !ok {
		return
	}
	delete(n.byUID, uid)
	if n.pods[name]--; n.pods[name] == 0 {
		delete(n.pods, name)
	}
}

// Exists reports whether some pod is of the workload with that name; it is
// metrics.Config.Alive.
func (n *Names) Exists(namespace, workload string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods[workloadName{namespace, workload}] > 0
}
