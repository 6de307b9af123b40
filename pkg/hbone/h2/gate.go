package h2

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Gate bounds the handshakes that are under way at once, of each source address
// and of all: they cost memory before anybody knows who asks. A handshake that
// finds no room waits a moment; if meanwhile one of those inside has become slow,
// it has to leave. So clients that dawdle cost themselves and not the others.
//
// Servers of one node share a Gate. It is safe for concurrent use.
type Gate struct {
	perSource, total int

	mu      sync.Mutex
	inside  map[netip.Addr][]*visit // oldest first
	count   int
	waiting int
	changed chan struct{} // closed and replaced when one has left
}

// visit is one handshake.
type visit struct {
	since time.Time
	evict func()
}

const (
	// slowVisit is how long a handshake may take before it has to make room: they
	// take some milliseconds.
	slowVisit = time.Second
	// maxWaiting bounds those that wait for room.
	maxWaiting = 256
	// maxPerSource and maxHandshakes are a Gate's defaults.
	maxPerSource  = 128
	maxHandshakes = 1024
)

// NewGate returns a gate for so many handshakes of one source and of all; 0 stands
// for 128 and 1024.
func NewGate(perSource, total int) *Gate {
	if perSource == 0 {
		perSource = maxPerSource
	}
	if total == 0 {
		total = maxHandshakes
	}
	return &Gate{perSource: perSource, total: total, inside: map[netip.Addr][]*visit{}, changed: make(chan struct{})}
}

// enter waits for room for a handshake with source, until ctx ends. evict is
// called, once at most, when the handshake must make room for others. nil means
// that there is none to be had.
func (g *Gate) enter(ctx context.Context, source netip.Addr, evict func()) *visit {
	v := &visit{evict: evict}
	waits := false
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.admitLocked(source, v) {
		if !waits && g.waiting == maxWaiting || ctx.Err() != nil {
			v = nil
			break
		}
		if !waits {
			waits = true
			g.waiting++
		}
		changed := g.changed
		g.mu.Unlock()
		await(ctx, changed, slowVisit/4)
		g.mu.Lock()
	}
	if waits {
		g.waiting--
	}
	return v
}

// await waits for changed, ctx or d.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-ctx.Done():
	case <-t.C:
	}
}

// admitLocked lets v in if there is room or a slow one that can leave.
func (g *Gate) admitLocked(source netip.Addr, v *visit) bool {
	now := time.Now()
	switch {
	case len(g.inside[source]) >= g.perSource:
		if !g.evictLocked(source, now) {
			return false
		}
	case g.count >= g.total:
		if !g.evictLocked(g.heaviestLocked(), now) {
			return false
		}
	}
	v.since = now
	g.inside[source] = append(g.inside[source], v)
	g.count++
	return true
}

// heaviestLocked returns the source with the most handshakes.
func (g *Gate) heaviestLocked() (heaviest netip.Addr) {
	most := 0
	for source, list := range g.inside {
		if len(list) > most {
			heaviest, most = source, len(list)
		}
	}
	return heaviest
}

// evictLocked ends the oldest handshake of a source if it is slow.
func (g *Gate) evictLocked(source netip.Addr, now time.Time) bool {
	list := g.inside[source]
	if len(list) == 0 || now.Sub(list[0].since) < slowVisit {
		return false
	}
	v := list[0]
	g.removeLocked(source, v)
	v.evict()
	return true
}

// leave makes room again. It may be called for a handshake that was evicted.
func (g *Gate) leave(source netip.Addr, v *visit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removeLocked(source, v) && g.waiting > 0 {
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

func (g *Gate) removeLocked(source netip.Addr, v *visit) bool {
	list := g.inside[source]
	for i, o := range list {
		if o != v {
			continue
		}
		g.count--
		if list = append(list[:i], list[i+1:]...); len(list) == 0 {
			delete(g.inside, source)
		} else {
			g.inside[source] = list
		}
		return true
	}
	return false
}

// Inside returns how many handshakes are under way.
func (g *Gate) Inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count
}
