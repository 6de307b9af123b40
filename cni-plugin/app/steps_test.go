package app

import (
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

func TestRest(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		what   string
		steps  steps
		latest time.Time
		want   time.Duration
	}{
		{"made in the mesh", steps{}, now, 0},
		{"not in yet", steps{outside: true}, time.Time{}, grace},
		{"just in", steps{joined: now}, now, grace},
		{"in for a while", steps{joined: ago(time.Second)}, ago(time.Second), time.Second},
		{"over", steps{joined: ago(3 * time.Second)}, ago(3 * time.Second), 0},
		{"another came later", steps{joined: ago(3 * time.Second)}, ago(time.Second), time.Second},
		{"others go on coming", steps{joined: ago(9 * time.Second)}, now, time.Second},
		{"for too long", steps{joined: ago(time.Minute)}, now, 0},
	} {
		if got := c.steps.rest(now, c.latest, grace); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// as reports whether the pod's rules are those of its options, with inbound
// plaintext let through or not.
func (w *world) as(uid string, ns *netns.NS, lenient bool) bool {
	w.t.Helper()
	o, _ := w.steps(uid)
	o.BypassInbound = lenient
	damage, err := redirect.Damage(ns, redirect.Pod(o))
	if err != nil {
		w.t.Fatal(err)
	}
	return damage == ""
}

// steps is what the agent keeps of a pod for it.
func (w *world) steps(uid string) (redirect.Options, steps) {
	w.agent.mu.Lock()
	p := w.agent.pods[mesh.PodUID(uid)]
	w.agent.mu.Unlock()
	<-p.turn
	defer p.unlock()
	return p.options, p.steps
}

// TestSteps holds that a pod that runs lets plaintext in while it joins, and before
// it leaves, and that one that starts in the mesh never does.
func TestSteps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.DrainGrace = time.Hour // every step is seen
	w.namespace("none")
	w.pod("u1", "")
	w.pod("u2", ", labels: {istio.io/dataplane-mode: ambient}")
	runs, _ := w.sandbox("u1")
	starts, path := w.sandbox("u2-later")
	w.start()
	w.ztunnel()
	w.await("ztunnel is there", func() bool { return w.agent.zds.Connected() > 0 })
	in := func(uid string) func() bool {
		return func() bool { return w.annotation(uid) == enroll.RedirectionEnabled && w.state(uid) == "enrolled" }
	}
	w.await("the pod is known to be outside", func() bool { _, s := w.steps("u1"); return s.outside })
	if code, text := w.cmdAdd("u2", path); code != 200 {
		t.Fatal(text)
	}
	if !in("u2")() || !w.as("u2", starts, false) {
		t.Error("a pod that starts in the mesh is not captured whole")
	}
	w.namespace("ambient")
	w.await("the running pod is in", in("u1"))
	if !w.as("u1", runs, true) {
		t.Error("a pod that joins refuses plaintext before others have joined")
	}
	w.pod("u2", ", labels: {istio.io/dataplane-mode: none}")
	w.await("plaintext to the pod that will leave is let in", func() bool { return w.as("u2", starts, true) })
	if !in("u2")() {
		t.Error("the pod left before others have let plaintext in")
	}
}

// TestStepsEnd holds that a pod that has joined is captured whole in the end, also
// after a change of mind.
func TestStepsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.DrainGrace = 10 * time.Millisecond
	w.namespace("none")
	w.pod("u1", "")
	ns, _ := w.sandbox("u1")
	w.start()
	w.ztunnel()
	for range 3 {
		w.namespace("ambient")
		w.await("the pod is captured whole", func() bool { return w.state("u1") == "enrolled" && w.as("u1", ns, false) })
		w.namespace("none")
		w.await("the pod begins to leave", func() bool { return w.state("u1") != "enrolled" || w.as("u1", ns, true) })
	}
	w.await("the pod is out", func() bool { return w.state("u1") == "out" && !w.captured(ns) })
}
