package h2

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var (
	near = netip.MustParseAddr("10.0.0.1")
	far  = netip.MustParseAddr("10.0.0.2")
)

// Handshakes that are slow make room for others; quick ones do not have to.
func TestGateEvictsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2, 10)
		evicted := 0
		evict := func() { evicted++ }
		for range 2 {
			if g.enter(t.Context(), near, evict) == nil {
				t.Fatal("no room at first")
			}
		}
		if g.enter(t.Context(), far, evict) == nil {
			t.Fatal("no room for another source")
		}
		soon, cancel := context.WithTimeout(t.Context(), slowVisit/2)
		defer cancel()
		if g.enter(soon, near, evict) != nil || evicted != 0 {
			t.Fatalf("a third one of the source got in at once; %d had to leave", evicted)
		}
		start := time.Now()
		if g.enter(t.Context(), near, evict) == nil || evicted != 1 {
			t.Fatalf("no room beside slow ones; %d had to leave", evicted)
		}
		if waited := time.Since(start); waited > slowVisit {
			t.Errorf("waited %v", waited)
		}
	})
}

// When all room is taken the source that took most of it gives it back.
func TestGateTakesFromTheHeaviest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(10, 5)
		var left []string
		for range 4 {
			g.enter(t.Context(), far, func() { left = append(left, "far") })
		}
		v := g.enter(t.Context(), near, func() { left = append(left, "near") })
		time.Sleep(2 * slowVisit)
		if g.enter(t.Context(), near, nil) == nil || len(left) != 1 || left[0] != "far" {
			t.Errorf("had to leave: %v", left)
		}
		g.leave(near, v)
		g.leave(near, v) // again: as after an eviction
		if n := g.Inside(); n != 4 {
			t.Errorf("%d inside, want 4", n)
		}
	})
}

// Who waits gets in as soon as one leaves, and not everybody may wait.
func TestGateWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1, 1)
		v := g.enter(t.Context(), near, nil)
		in := make(chan *visit)
		for range maxWaiting {
			go func() { in <- g.enter(t.Context(), near, func() {}) }()
		}
		synctest.Wait()
		if g.enter(t.Context(), near, nil) != nil {
			t.Error("one more than may wait got in")
		}
		for range maxWaiting {
			g.leave(near, v)
			v = <-in
			if v == nil {
				t.Fatal("one that waited was turned away")
			}
		}
	})
}
