package proxy

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// suspects remembers which workloads could not be reached a moment ago, so that
// the next connections prefer others: one that answers nothing would cost each of
// them its time again. Suspicion ends by itself, when the workload answers, and
// when the control plane says anything new about it, which makes it another value.
// It is a property of the node, not of a pod.
type suspects struct {
	mu   sync.Mutex
	list atomic.Pointer[map[*mesh.Workload]time.Time] // until when; never modified
}

const (
	// suspicion is how long a workload stays suspect. Then some connections try it
	// again.
	suspicion = 15 * time.Second
	// maxSuspects bounds the list; it matters only when much of a mesh is gone.
	maxSuspects = 1024
)

// at returns what is suspected at a moment: a snapshot, so that one decision sees
// one state. Nil suspects nobody.
func (s *suspects) at(now time.Time) func(*mesh.Workload) bool {
	list := s.list.Load()
	if list == nil {
		return nil
	}
	return func(w *mesh.Workload) bool { return now.Before((*list)[w]) }
}

func (s *suspects) add(w *mesh.Workload, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[*mesh.Workload]time.Time{w: now.Add(suspicion)}
	if list := s.list.Load(); list != nil {
		for other, until := range *list {
			if other != w && now.Before(until) && len(next) < maxSuspects {
				next[other] = until
			}
		}
	}
	s.list.Store(&next)
}

// clear takes back what was suspected of w.
func (s *suspects) clear(w *mesh.Workload) {
	if list := s.list.Load(); list == nil || (*list)[w].IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.list.Load()
	if list == nil {
		return
	}
	next := maps.Clone(*list)
	delete(next, w)
	if len(next) == 0 {
		s.list.Store(nil)
		return
	}
	s.list.Store(&next)
}
