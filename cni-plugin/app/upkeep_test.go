package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/cni-plugin/eligible"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// told keeps events.
type told struct {
	mu  sync.Mutex
	all []string
}

func (e *told) PodEvent(uid mesh.PodUID, p mesh.PodInfo, warning bool, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%s %v %s: %s", uid, warning, reason, message))
}

func (e *told) NodeEvent(warning bool, reason, message string) {
	e.PodEvent("node", mesh.PodInfo{}, warning, reason, message)
}

func (e *told) count(beginning string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.all {
		if strings.HasPrefix(s, beginning) {
			n++
		}
	}
	return n
}

// TestRulesRestored: rules that something else takes away come back at once, and
// people are told.
func TestRulesRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.start()
	w.ztunnel()
	ns, path := w.sandbox("u1")
	w.pod("u1", "")
	w.await("the pod has joined", func() bool { w.cmdAdd("u1", path); return w.state("u1") == "enrolled" })
	restored := func() int { return w.told.count("u1 true MeshRulesRestored") }
	for range 3 {
		before := restored()
		if err := redirect.Remove(ns); err != nil {
			t.Fatal(err)
		}
		w.await("the rules are back", func() bool { return w.captured(ns) })
		// More than once, when they were repaired while they were being removed.
		w.await("it is told", func() bool { return restored() > before })
	}
	if n := w.told.count("u1 false MeshJoined"); n != 1 {
		t.Errorf("the pod was told %d times to have joined: %q", n, w.told.all)
	}
}

// TestEvents: what happens to a pod is told once.
func TestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.start()
	w.sandbox("u1")
	w.pod("u1", "")
	w.write("pod-u2", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart-u2, namespace: shop, uid: u2, labels: {istio.io/dataplane-mode: ambient}}\nspec: {nodeName: node-1, hostNetwork: true}\n")
	w.await("without a ztunnel", func() bool { return w.told.count("u1 true MeshPending: no ztunnel") == 1 })
	w.await("on the node's network", func() bool {
		return w.told.count("u2 true MeshSkipped: is labelled for the mesh and stays out of it: pod uses the host network") == 1
	})
	z := w.ztunnel()
	w.await("with one", func() bool { return w.told.count("u1 false MeshJoined") == 1 && z.snapshots() > 0 })
	w.namespace("none")
	w.await("not labelled any more", func() bool { return w.told.count("u1 false MeshLeft") == 1 })
	if len(w.told.all) != 4 {
		t.Errorf("told %q", w.told.all)
	}
}

// TestRelease: when the mesh goes, its pods are their own again, ztunnel or not.
func TestRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.start()
	_, stop := w.connect(&ztunnel{pods: map[mesh.PodUID]netns.ID{}, kept: map[mesh.PodUID]bool{}})
	ns, _ := w.sandbox("u1")
	w.pod("u1", "")
	w.await("the pod has joined", func() bool { return w.state("u1") == "enrolled" })
	stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := w.agent.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if w.captured(ns) || w.annotation("u1") != "" || w.state("u1") != "out" {
		t.Errorf("rules %v, annotation %q, state %s", w.captured(ns), w.annotation("u1"), w.state("u1"))
	}
	if f, err := eligible.Load(w.cfg.Eligibility); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	} else if outside, why := f.Outside("shop", "new", ""); !outside {
		t.Errorf("a new pod would wait: %s", why)
	}
	_, path := w.sandbox("u2")
	w.pod("u2", "")
	if code, text := w.cmdAdd("u2", path); code != 200 || !strings.Contains(text, string(MeshGoes)) {
		t.Errorf("a pod that starts: %d %s", code, text)
	}
	// One whose connections do not end is stripped when there is no more time.
	cancel()
	if err := w.agent.Release(ctx); err != nil {
		t.Error(err)
	}
}

// TestNoEventsOfAnUpgrade: an agent that comes after another one has nothing to tell
// of pods that were served all the time.
func TestNoEventsOfAnUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.start()
	w.ztunnel()
	w.sandbox("u1")
	w.pod("u1", "")
	w.await("the pod has joined", func() bool { return w.state("u1") == "enrolled" && w.annotation("u1") == "enabled" })
	w.stop()
	before := len(w.told.all)
	w.start()
	w.await("it is served again", func() bool { return w.state("u1") == "enrolled" })
	if len(w.told.all) != before {
		t.Errorf("told %q", w.told.all[before:])
	}
}
