package hbone

import "sync/atomic"

// Budget is the number of bytes that all tunnels of a node together may promise
// to buffer beyond their initial windows. The nil Budget is without limit.
type Budget struct {
	size int64
	used atomic.Int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{size: bytes} }

// Take reserves n bytes if there is room for them.
func (b *Budget) Take(n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > b.size {
		b.used.Add(-n)
		return false
	}
	return true
}

// Force reserves n bytes whether or not there is room: for bytes that have
// already arrived. It reports whether the budget still holds.
func (b *Budget) Force(n int64) bool {
	return b == nil || b.used.Add(n) <= b.size
}

// Give returns n bytes.
func (b *Budget) Give(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}

// Exhausted reports whether more is in use than the budget has.
func (b *Budget) Exhausted() bool { return b != nil && b.used.Load() > b.size }

// Used returns the bytes in use and the size of the budget, both 0 for nil.
func (b *Budget) Used() (used, size int64) {
	if b == nil {
		return 0, 0
	}
	return b.used.Load(), b.size
}
