package h2

import (
	"sync"
	"sync/atomic"
)

// frameHeaderLen is the length of a frame's header (RFC 9113 §4.1).
const frameHeaderLen = 9

// A block is a borrowed buffer of a queue: bytes from r to w are in it.
type block struct {
	data  []byte
	r, w  int
	class int
	next  *block
}

// blockSizes are the sizes of blocks, smallest first.
var blockSizes = [...]int{2 << 10, 16 << 10, 64 << 10, 128 << 10}

const largestClass = len(blockSizes) - 1

// borrowed counts the bytes of the blocks that are in use.
var borrowed atomic.Int64

// Buffered returns how many bytes of memory hold what passes through this
// process's tunnels, on its way in and on its way out.
func Buffered() int64 { return borrowed.Load() }

var blockPools [len(blockSizes)]sync.Pool

// newBlock borrows an empty block.
func newBlock(class int) *block {
	borrowed.Add(int64(blockSizes[class]))
	if b, ok := blockPools[class].Get().(*block); ok {
		return b
	}
	return &block{data: make([]byte, blockSizes[class]), class: class}
}

// classFor returns the class of the smallest block that holds n bytes, or the
// largest class.
func classFor(n int) int {
	for class, size := range blockSizes {
		if n <= size {
			return class
		}
	}
	return largestClass
}

// free gives b back.
func (b *block) free() {
	borrowed.Add(-int64(len(b.data)))
	b.r, b.w, b.next = 0, 0, nil
	blockPools[b.class].Put(b)
}

// bytes returns what is in b.
func (b *block) bytes() []byte { return b.data[b.r:b.w] }

// queue holds bytes that wait for a reader, in borrowed blocks.
type queue struct {
	head, tail *block
	n          int
}

// add copies p to the end of the queue.
func (q *queue) add(p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.data) {
			q.grow(len(p))
		}
		m := copy(q.tail.data[q.tail.w:], p)
		q.tail.w += m
		p = p[m:]
	}
}

// grow appends a block: as large as what is to come, or as what is there
// already, so that many small frames do not become many small blocks.
func (q *queue) grow(n int) {
	b := newBlock(classFor(max(n, q.n/2)))
	if q.tail == nil {
		q.head = b
	} else {
		q.tail.next = b
	}
	q.tail = b
}

// first returns the bytes at the head of the queue, nil when it is empty.
func (q *queue) first() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.bytes()
}

// drop removes n bytes of the head block.
func (q *queue) drop(n int) {
	q.n -= n
	q.head.r += n
	if q.head.r < q.head.w {
		return
	}
	b := q.head
	q.head = b.next
	if q.head == nil {
		q.tail = nil
	}
	b.free()
}

// clear drops everything.
func (q *queue) clear() {
	for q.head != nil {
		q.drop(len(q.first()))
	}
}
