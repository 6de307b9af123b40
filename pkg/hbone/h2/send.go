package h2

import (
	"runtime"
	"time"

	"golang.org/x/net/http2"
)

// The way out. A stream first reserves window, then fills a block, then submits
// it: what is in the ready ring is paid for and only waits its turn.
//
//	reserve ─▶ submit ─▶ ready ring ─▶ writeBatch ─▶ transport
//
// The submitter writes, for itself and for whoever else is in the ring, until
// its own block is out; what is left then goes to a writer goroutine.

// batchBytes is about how much one call of the transport carries.
const batchBytes = 128 << 10

// minQuantum is the least that a stream may send in its turn.
const minQuantum = 16 << 10

// smallPiece is the size below which pieces are copied together into one TLS
// record rather than each sent as its own.
const smallPiece = 4 << 10

// congested is the queueing delay above which a second connection is worth having.
const congested = 5 * time.Millisecond

// ring is the queue of streams that have something to send.
type ring struct {
	head, tail *stream
	n          int
}

func (r *ring) push(s *stream) {
	if s.queued {
		return
	}
	s.queued = true
	s.next = nil
	if r.tail == nil {
		r.head = s
	} else {
		r.tail.next = s
	}
	r.tail = s
	r.n++
}

func (r *ring) pop() *stream {
	s := r.head
	r.head = s.next
	if r.head == nil {
		r.tail = nil
	}
	s.next, s.queued = nil, false
	r.n--
	return s
}

// batch is what one call of the transport carries.
type batch struct {
	bufs   [][]byte
	joined *block    // small pieces, copied together
	tail   bool      // the last of bufs is the end of joined
	bytes  int       // in bufs
	users  []*stream // whose blocks are in bufs
}

// add appends a piece that stays valid until the batch is written.
func (b *batch) add(p []byte) {
	b.bytes += len(p)
	if len(p) > smallPiece {
		b.bufs = append(b.bufs, p)
		b.tail = false
		return
	}
	b.join(p)
}

// join copies a piece into the joined block, and on into a new one when full.
func (b *batch) join(p []byte) {
	if b.joined == nil {
		b.joined = newBlock(largestClass)
	}
	j := b.joined
	if len(p) > len(j.data)-j.w {
		b.bufs = append(b.bufs, append([]byte(nil), p...))
		b.tail = false
		return
	}
	start := j.w
	j.w += copy(j.data[j.w:], p)
	if b.tail {
		last := &b.bufs[len(b.bufs)-1]
		*last = j.data[start-len(*last) : j.w]
		return
	}
	b.bufs = append(b.bufs, j.data[start:j.w])
	b.tail = true
}

// room is how much may still be joined without an allocation.
func (b *batch) room() int {
	if b.joined == nil {
		return blockSizes[largestClass]
	}
	return len(b.joined.data) - b.joined.w
}

// reset empties b for the next batch.
func (b *batch) reset() {
	clear(b.bufs)
	clear(b.users)
	b.bufs, b.users = b.bufs[:0], b.users[:0]
	if cap(b.bufs) > 64 {
		b.bufs, b.users = nil, nil
	}
	if b.joined != nil {
		b.joined.free()
		b.joined = nil
	}
	b.tail, b.bytes = false, 0
}

// work reports whether there is anything to write. c.mu is held.
func (c *conn) work() bool {
	return !c.ended && (len(c.ctl) > 0 || c.ready.n > 0 || c.finish)
}

// kick sees to it that what is queued gets written, by another goroutine: for
// callers that must not wait. c.mu is held.
func (c *conn) kick() {
	if !c.writing && c.work() {
		c.writing = true
		go c.writer()
	}
}

// writer writes until there is nothing left.
func (c *conn) writer() {
	c.mu.Lock()
	c.yield()
	for c.work() {
		c.writeBatch()
	}
	c.writing = false
	c.mu.Unlock()
}

// flush writes what is queued in the caller's goroutine while pending reports
// true, and leaves the rest to a writer. If somebody writes already it does
// nothing. c.mu is held, and released while writing.
func (c *conn) flush(pending func() bool) {
	if c.writing {
		return
	}
	c.writing = true
	c.yield()
	for c.work() && pending() {
		c.writeBatch()
	}
	c.writing = false
	c.kick()
}

// yield lets the goroutines run that are ready now: what they have to send goes
// into the same write, which costs more than all else that happens to a small
// frame. Without any it returns at once. c.mu is held, and released meanwhile.
func (c *conn) yield() {
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
}

// writeBatch writes all control frames and a quantum of each stream. c.mu is
// held, and released while writing.
func (c *conn) writeBatch() {
	b := &c.batch
	ctl := c.ctl
	c.ctl, c.spare = c.spare[:0], nil
	if len(ctl) > 0 {
		b.add(ctl)
	}
	quantum := max(minQuantum, batchBytes/max(c.ready.n, 1))
	for c.ready.n > 0 && b.bytes < batchBytes {
		s := c.ready.pop()
		if s.err == nil {
			c.take(b, s, quantum)
		}
	}
	over := c.finish && c.ready.n == 0
	wait := linger
	if c.err == nil {
		wait = farewell
	}
	c.mu.Unlock()

	var err error
	if len(b.bufs) > 0 {
		err = c.t.WriteBuffers(b.bufs)
	}
	if over && err == nil {
		err = c.t.CloseWrite()
	}
	if err != nil {
		c.writeFailed(err)
	} else if over {
		time.AfterFunc(wait, c.cut)
	}

	c.mu.Lock()
	for _, s := range b.users {
		s.written(over || err != nil)
	}
	b.reset()
	if cap(ctl) <= 4<<10 {
		c.spare = ctl
	}
	c.ended = c.ended || over || err != nil
}

// writeFailed ends a connection that cannot be written. A peer that hangs up on a
// greeting has probably said why, which the reader is about to find.
func (c *conn) writeFailed(err error) {
	c.mu.Lock()
	greeting := c.client && !c.peerSet
	c.mu.Unlock()
	if greeting {
		time.AfterFunc(linger, func() { c.kill(c.lost(err)) })
		return
	}
	c.kill(c.lost(err))
}

// take moves up to a quantum of s's block into the batch. c.mu is held.
func (c *conn) take(b *batch, s *stream, quantum int) {
	c.noteDelay(s)
	b.users = append(b.users, s)
	s.inBatch = true
	if s.out == nil {
		putFrameHeader(s.header[:], 0, http2.FrameData, http2.FlagDataEndStream, s.id)
		b.add(s.header[:])
		return
	}
	n := min(quantum, s.out.w-s.out.r)
	if n > c.peerFrame {
		c.takeFrames(b, s, n)
		return
	}
	b.add(s.frame(n))
}

// takeFrames is take for a peer whose frames are smaller than the quantum:
// headers and parts of the block are copied together, since a header of its own
// would cost a TLS record.
func (c *conn) takeFrames(b *batch, s *stream, n int) {
	for n > 0 && b.room() >= c.peerFrame+frameHeaderLen {
		m := min(n, c.peerFrame)
		f := s.frame(m)
		b.bytes += len(f)
		b.join(f)
		n -= m
	}
}

// frame returns the next n bytes of s's block as a DATA frame, whose header
// overwrites what precedes them: free room, or bytes that are in the batch
// already (copied) or have been written.
func (s *stream) frame(n int) []byte {
	o := s.out
	var flags http2.Flags
	if s.outEnd && o.r+n == o.w {
		flags = http2.FlagDataEndStream
	}
	f := o.data[o.r-frameHeaderLen : o.r+n]
	putFrameHeader(f, n, http2.FrameData, flags, s.id)
	o.r += n
	return f
}

// written settles a stream's part in a batch. c.mu is held.
func (s *stream) written(failed bool) {
	s.inBatch = false
	if s.err == nil && !failed && s.out != nil && s.out.r < s.out.w {
		s.c.ready.push(s)
		return
	}
	s.dropOut()
	if s.outEnd && s.err == nil {
		s.sendDone = true
		s.ended()
	}
	s.outEnd = false
	s.outBusy = false
	s.cond.Broadcast()
}

// noteDelay measures how long s waited for its turn. c.mu is held.
func (c *conn) noteDelay(s *stream) {
	if s.submitted.IsZero() {
		c.queueing -= c.queueing / 8
		return
	}
	c.queueing += (time.Since(s.submitted) - c.queueing) / 8
	s.submitted = time.Time{}
}

// tryReserve takes up to n bytes off the windows without waiting.
func (c *conn) tryReserve(s *stream, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reserveLocked(s, n)
}

func (c *conn) reserveLocked(s *stream, n int) int {
	got := int(min(int64(n), s.sendWin, c.sendWin))
	if got <= 0 || s.err != nil {
		return 0
	}
	s.sendWin -= int64(got)
	c.sendWin -= int64(got)
	return got
}

// refund gives back what was reserved and not used. c.mu is held.
func (c *conn) refund(s *stream, n int) {
	if n == 0 {
		return
	}
	s.sendWin += int64(n)
	c.sendWin += int64(n)
	c.unblock()
}

// unblock wakes the streams that wait for the connection's window. c.mu is held.
func (c *conn) unblock() {
	if c.sendWin <= 0 || len(c.blocked) == 0 {
		return
	}
	for i, s := range c.blocked {
		s.blocked = false
		s.cond.Broadcast()
		c.blocked[i] = nil
	}
	c.blocked = c.blocked[:0]
}

// awaitWindow waits until s may send something. c.mu is held.
func (s *stream) awaitWindow() error {
	c := s.c
	for s.sendErr() == nil {
		switch {
		case s.sendWin <= 0:
		case c.sendWin <= 0 && !s.blocked:
			s.blocked = true
			c.blocked = append(c.blocked, s)
		case c.sendWin <= 0:
		default:
			return nil
		}
		s.cond.Wait()
	}
	return s.sendErr()
}

// submit sends b, whose window is reserved, and waits until it is out; refund is
// reserved window that b did not need. With end our direction ends behind it;
// b may then be nil. b is given back.
func (s *stream) submit(b *block, end bool, refund int) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refund(s, refund)
	if s.err != nil || s.sendDone {
		s.unsent(b)
		return s.sendErr()
	}
	s.out, s.outEnd, s.outBusy = b, end, true
	if c.writing {
		s.submitted = time.Now()
	}
	c.ready.push(s)
	c.flush(s.busy)
	for s.outBusy && s.err == nil || s.inBatch {
		s.cond.Wait()
	}
	if s.outBusy { // reset while it waited its turn
		s.outBusy = false
		s.dropOut()
		return s.err
	}
	return nil // on its way; what happens to the stream now is not this call's
}

// dropOut gives s's block back, sent or not. c.mu is held.
func (s *stream) dropOut() {
	s.unsent(s.out)
	s.out = nil
}

// unsent gives b back, and to the connection's window what was reserved for bytes
// that will not be sent: the peer credits only what it gets. b may be nil. c.mu is
// held.
func (s *stream) unsent(b *block) {
	if b != nil {
		s.c.refund(s, b.w-b.r)
		b.free()
	}
}

// busy reports whether s's block is still to be written. c.mu is held.
func (s *stream) busy() bool { return s.outBusy && s.err == nil }
