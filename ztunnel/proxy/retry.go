package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// retries bounds how much of a node's work may be second attempts. One endpoint
// that fails costs a few; when everything is slow because there is too much to do,
// attempts that give up and begin again elsewhere would make it several times as
// much, and it would stay slow after its cause has gone.
//
//	every connection earns a fifth of a retry, every second ten; a hundred are kept
//
// The zero value has all of them. It is safe for concurrent use.
type retries struct {
	first atomic.Uint64 // connections since the balance was drawn up

	mu      sync.Mutex
	balance float64
	drawn   time.Time
}

const (
	retriesPerConnection = 0.2
	retriesPerSecond     = 10
	maxRetries           = 100
)

// earn notes a connection's first attempt.
func (r *retries) earn() { r.first.Add(1) }

// left reports whether a retry could be made at a moment. Without, an attempt
// should be a patient one.
func (r *retries) left(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drawLocked(now) >= 1
}

// spend makes a retry, if there is one left.
func (r *retries) spend(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.drawLocked(now) < 1 {
		return false
	}
	r.balance--
	return true
}

func (r *retries) drawLocked(now time.Time) float64 {
	earned := retriesPerConnection*float64(r.first.Swap(0)) + retriesPerSecond*now.Sub(r.drawn).Seconds()
	r.balance, r.drawn = min(maxRetries, r.balance+max(0, earned)), now
	return r.balance
}
