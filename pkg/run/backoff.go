package run

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields growing waits between attempts at the same thing.
type Backoff struct {
	min, max time.Duration
	next     time.Duration
}

// NewBackoff returns waits that start at min, double each time and stop growing
// at max, each with ±20 % of jitter so that a fleet does not retry in step.
// min must be positive and not above max.
func NewBackoff(min, max time.Duration) *Backoff {
	return &Backoff{min: min, max: max, next: min}
}

// Next returns how long to wait before the next attempt. It never exceeds max.
func (b *Backoff) Next() time.Duration {
	d := b.next
	b.next = min(2*b.next, b.max)
	return min(Jitter(d, 0.2), b.max)
}

// Reset makes the next wait the first one again, after a success.
func (b *Backoff) Reset() { b.next = b.min }

// Jitter returns d changed at random by at most the given fraction either way.
func Jitter(d time.Duration, fraction float64) time.Duration {
	return time.Duration(float64(d) * (1 + fraction*(2*rand.Float64()-1)))
}

// Sleep waits for d or until ctx ends, and returns ctx's cause in that case.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
