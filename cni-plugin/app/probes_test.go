package app

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// TestNodeRules: the node's rules for probes are those of the pods in the mesh and of
// the proof's, whatever becomes of them.
func TestNodeRules(t *testing.T) {
	t.Parallel()
	node := netnstest.New(t)
	a := New(Config{ProbeSNAT: true}, Parts{Log: slog.New(slog.DiscardHandler)})
	a.node = func() (*netns.NS, error) { return node.Dup() }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.runProbes(ctx) }()

	ip := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	rewritten := func(want ...netip.Addr) {
		t.Helper()
		var got []netip.Addr
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
			a.rewriting.Lock()
			got = a.rewritten
			a.rewriting.Unlock()
			if there, err := redirect.NodeApplied(node); err == nil && there && slices.Equal(got, want) {
				return
			}
		}
		t.Fatalf("rewritten for %v, want %v", got, want)
	}
	p := newPod(a, enroll.Pod{UID: "u", IPs: []netip.Addr{ip("10.0.0.2")}})
	a.mu.Lock()
	a.pods = map[mesh.PodUID]*pod{"u": p}
	a.mu.Unlock()
	p.ips = []netip.Addr{ip("10.0.0.2"), ip("fd00::2")}
	p.publish(nil, true)
	rewritten(ip("10.0.0.2"), ip("fd00::2"))
	if err := a.rewriteFor([]netip.Addr{ip("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	rewritten(ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::2"))
	if err := redirect.RemoveNode(node); err != nil { // somebody else did
		t.Fatal(err)
	}
	a.pokeProbes()
	rewritten(ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::2"))
	p.publish(nil, false)
	if err := a.rewriteFor(nil); err != nil {
		t.Fatal(err)
	}
	rewritten()
	if err := redirect.RemoveNode(node); err != nil { // the mesh leaves the node
		t.Fatal(err)
	}
	if err := a.rewriteProbes(); err != nil {
		t.Fatal(err)
	}
	if there, err := redirect.NodeApplied(node); err != nil || there {
		t.Errorf("rules for no pod are there: %v, %v", there, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestNodeRulesStay: an agent that ends leaves its successor the rules of the pods
// that are in the mesh.
func TestNodeRulesStay(t *testing.T) {
	t.Parallel()
	a := New(Config{ProbeSNAT: true}, Parts{Log: slog.New(slog.DiscardHandler)})
	ip := netip.MustParseAddr("10.0.0.2")
	p := newPod(a, enroll.Pod{UID: "u", IPs: []netip.Addr{ip}})
	a.pods = map[mesh.PodUID]*pod{"u": p}
	p.publish(nil, true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.noteSet = true // nothing is written on it
	p.run(ctx)
	if got := a.probed(); !slices.Equal(got, []netip.Addr{ip}) {
		t.Errorf("at its end the agent rewrites probes of %v", got)
	}
}
