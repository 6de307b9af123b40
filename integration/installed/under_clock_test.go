//go:build kube

package installed

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/integration/clock"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// skewed are what is wrong by a minute: everything of the mesh and of Kubernetes that
// runs on a node, or the authority that signs certificates.
var skewed = []struct {
	what string
	pids func(s *stage) []int
}{
	{"node 1's", func(s *stage) (pids []int) {
		for _, app := range []string{"ztunnel", "culvert-cni"} {
			p := s.podOn("node1", app)
			pids = append(pids, podProcesses(p.Metadata.UID, map[string]string{"ztunnel": "ztunnel", "culvert-cni": "culvert-agent"}[app])...)
		}
		return append(append(pids, placeProcesses("node1", "kubelet")...), placeProcesses("node1", "containerd")...)
	}},
	{"the control plane's", func(*stage) []int { return matchingControl() }},
}

// skewClocks has clocks differ by a minute, and starts pods whose certificates are
// made and checked then.
func skewClocks(s *stage, r *row) {
	if !clock.Supported {
		r.note("not tried: another processor")
		return
	}
	for _, who := range skewed {
		for _, by := range []time.Duration{time.Minute, -time.Minute} {
			s.underClock(r, fmt.Sprintf("%s clock %s", who.what, ahead(by)), who.pids(s), by)
		}
	}
}

func ahead(by time.Duration) string {
	if by < 0 {
		return short(-by) + " behind"
	}
	return short(by) + " ahead"
}

// underClock starts a pod on each node while programs have another time.
func (s *stage) underClock(r *row, what string, pids []int, by time.Duration) {
	if len(pids) == 0 {
		s.t.Fatalf("%s: no program", what)
	}
	if n := s.shift(pids, by); n == 0 {
		s.t.Fatalf("%s: every program has ended", what)
	}
	defer s.shift(pids, 0)
	start := time.Now()
	var names []string
	for _, node := range []string{"node1", "node2"} {
		names = append(names, s.newPod(stageNS, node, ""))
	}
	var told []string
	for _, name := range names {
		s.awaitReady(stageNS, name, limit)
		s.reachesAll(name)
		told = append(told, short(time.Since(start)))
	}
	r.note("%s: pods of new accounts on node 1 and 2 work after %s", what, strings.Join(told, ", "))
	s.removePods(stageNS, names...)
}

// shift moves clocks, and says how many: children that a program has forked a moment
// ago may have ended.
func (s *stage) shift(pids []int, by time.Duration) (n int) {
	s.t.Helper()
	for _, pid := range pids {
		err := clock.Shift(pid, by)
		if err == nil {
			n++
		} else if _, gone := os.Stat(fmt.Sprintf("/proc/%d", pid)); gone == nil {
			s.t.Error(err)
		}
	}
	return n
}

// reachesAll waits until a pod's connections work, to the servers of both nodes.
func (s *stage) reachesAll(pod string) {
	ns := s.enter(stageNS, pod)
	defer ns.Close()
	eventually(s.t, "traffic of "+pod, func() error { return askAll(ns, s) })
}

func askAll(from *netns.NS, s *stage) error {
	errs := []error{ask(from, s.steady)}
	for range 12 { // replicas on both nodes
		errs = append(errs, ask(from, s.app))
	}
	return errors.Join(errs...)
}
