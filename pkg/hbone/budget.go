package hbone

import "sync/atomic"

// Budget is the number of bytes that all tunnels of a node together may promise
// to buffer, or do buffer. The nil Budget is without limit.
//
// A share is what one peer may use of it: a quarter, so that one peer's unread
// bytes do not stop the others, and a little in any case, so that an honest peer
// goes on when several that are not have used up the whole.
type Budget struct {
	size   int64
	used   atomic.Int64
	parent *Budget // of a share
}

const (
	sharePart  = 4         // a share is this part of the whole
	shareFloor = 512 << 10 // what a share may use also when the whole is used up
)

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{size: bytes} }

// Share returns one peer's share of the budget. What it uses counts in both.
func (b *Budget) Share() *Budget {
	if b == nil {
		return nil
	}
	return &Budget{size: b.size / sharePart, parent: b}
}

// Take reserves n bytes if there is room for them.
func (b *Budget) Take(n int64) bool {
	if b == nil {
		return true
	}
	used := b.used.Add(n)
	if b.parent != nil && used <= shareFloor {
		b.parent.Force(n)
		return true
	}
	if used > b.size || !b.parent.Take(n) {
		b.used.Add(-n)
		return false
	}
	return true
}

// Force reserves n bytes whether or not there is room: for bytes that have
// already arrived. It reports whether the budget still holds.
func (b *Budget) Force(n int64) bool {
	if b == nil {
		return true
	}
	used := b.used.Add(n)
	return b.parent.Force(n) && used <= b.size || b.parent != nil && used <= shareFloor
}

// Give returns n bytes.
func (b *Budget) Give(n int64) {
	if b != nil {
		b.used.Add(-n)
		b.parent.Give(n)
	}
}

// Exhausted reports whether more is in use than the budget has.
func (b *Budget) Exhausted() bool {
	if b == nil {
		return false
	}
	used := b.used.Load()
	return used > b.size || b.parent.Exhausted() && used > shareFloor
}

// Used returns the bytes in use and the size of the budget, both 0 for nil.
func (b *Budget) Used() (used, size int64) {
	if b == nil {
		return 0, 0
	}
	return b.used.Load(), b.size
}
