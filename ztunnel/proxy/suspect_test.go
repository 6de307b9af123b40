package proxy

import (
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestSuspects holds that suspicion ends by itself and by an answer, that a
// decision sees one state, and that the list is bounded.
func TestSuspects(t *testing.T) {
	t.Parallel()
	var s suspects
	now := time.Unix(1000, 0)
	if s.at(now) != nil {
		t.Error("somebody is suspected from the start")
	}
	a, b := &mesh.Workload{UID: "a"}, &mesh.Workload{UID: "b"}
	s.add(a, now)
	before := s.at(now)
	s.add(b, now.Add(suspicion/2))
	if !before(a) || before(b) {
		t.Error("a decision sees what comes while it is made")
	}
	if at := s.at(now.Add(suspicion)); at(a) || !at(b) {
		t.Error("suspicion does not end by itself")
	}
	s.clear(b)
	if at := s.at(now); !at(a) || at(b) {
		t.Error("who has answered is suspected")
	}
	s.clear(a)
	s.clear(a)
	if s.at(now) != nil {
		t.Error("somebody is suspected in the end")
	}
	for range 2 * maxSuspects {
		s.add(&mesh.Workload{}, now)
	}
	if n := len(*s.list.Load()); n > maxSuspects {
		t.Errorf("%d suspects are remembered", n)
	}
}
