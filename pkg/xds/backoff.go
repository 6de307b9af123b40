package xds

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	minWait = 10 * time.Millisecond
	maxWait = 4 * time.Second // what is new in the mesh waits for so long after the server is back
)

// backOff doubles the wait between streams. It starts over after one that the
// server ended in order, or that held at least as long as the longest wait.
type backOff struct{ last time.Duration }

// next returns how long to wait; up to a fifth less than the step, so that many
// clients do not come back at once.
func (b *backOff) next(end ending) time.Duration {
	if end.kind == endComplete || end.kind == endReconnect || end.lived >= maxWait {
		b.last = 0
	}
	b.last = min(2*max(b.last, minWait), maxWait)
	return b.last - rand.N(b.last/5)
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
