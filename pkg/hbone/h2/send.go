package h2

import (
	"runtime"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// The way out. A stream first reserves window, then fills a block, then submits
// it: what is in the ready ring is paid for and only waits its turn.
//
//	reserve ─▶ submit ─▶ ready ring ─▶ writeBatch ─▶ transport
//
// The submitter writes, for itself and for whoever else is in the ring, until
// its own block is out; what is left then goes to a writer goroutine.

// batchBytes is about how much one call of the transport carries.
const batchBytes = 256 << 10

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

// batch is what one call of the transport carries: first a record of small
// pieces, copied together, then the blocks that are large enough for records of
// their own.
type batch struct {
	joined *outBlock // its n counts plaintext; nil while there is none
	runs   [][]byte
	bytes  int       // in both
	users  []*stream // whose blocks are in it
}

// join copies as much of a piece into the joined record as there is room for.
func (b *batch) join(p []byte) int {
	if b.joined == nil {
		b.joined = newOut(1, 0)
	}
	n := tlsconn.Append(b.joined.data, b.joined.n, p)
	b.joined.n += n
	b.bytes += n
	return n
}

// room is how much may still be joined.
func (b *batch) room() int {
	if b.joined == nil {
		return tlsconn.MaxPlain
	}
	return tlsconn.MaxPlain - b.joined.n
}

// add appends a run that stays valid until the batch is written.
func (b *batch) add(run []byte) {
	if b.runs == nil {
		b.runs = make([][]byte, 1, 8)
	}
	b.runs = append(b.runs, run)
	b.bytes += len(run)
}

// all returns the runs to write.
func (b *batch) all() [][]byte {
	if b.runs == nil {
		b.runs = make([][]byte, 1, 8)
	}
	if b.joined == nil {
		return b.runs[1:]
	}
	b.runs[0] = b.joined.data[:tlsconn.RunLength(b.joined.n)]
	return b.runs
}

// reset empties b for the next batch.
func (b *batch) reset() {
	if b.joined != nil {
		b.joined.free()
		b.joined = nil
	}
	clear(b.runs)
	clear(b.users)
	b.users = b.users[:0]
	if b.runs != nil {
		b.runs = b.runs[:1]
	}
	if cap(b.runs) > 64 || cap(b.users) > 64 {
		b.runs, b.users = nil, nil
	}
	b.bytes = 0
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

// writeBatch writes control frames, and then a block of each stream. c.mu is
// held, and released while writing.
func (c *conn) writeBatch() {
	b := &c.batch
	rest := c.takeControls(b)
	for rest == 0 && c.ready.n > 0 && b.bytes < batchBytes && b.room() >= smallPiece+frameHeaderLen {
		if s := c.ready.pop(); s.err == nil {
			c.take(b, s)
		}
	}
	over := c.finish && c.ready.n == 0 && rest == 0
	wait := linger
	if c.err == nil {
		wait = farewell
	}
	c.mu.Unlock()

	var err error
	if runs := b.all(); len(runs) > 0 {
		err = c.t.WriteRecords(runs)
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

// takeControls moves the control frames into the batch and returns how many
// bytes had no room: nothing may come between them. c.mu is held.
func (c *conn) takeControls(b *batch) (rest int) {
	if len(c.ctl) == 0 {
		return 0
	}
	rest = len(c.ctl) - b.join(c.ctl)
	copy(c.ctl, c.ctl[len(c.ctl)-rest:])
	c.ctl = c.ctl[:rest]
	if cap(c.ctl) > 4<<10 && rest == 0 {
		c.ctl = nil
	}
	return rest
}

// take moves s's block into the batch. c.mu is held.
func (c *conn) take(b *batch, s *stream) {
	c.noteDelay(s)
	b.users = append(b.users, s)
	s.inBatch = true
	if s.out == nil {
		var header [frameHeaderLen]byte
		putFrameHeader(header[:], 0, http2.FrameData, http2.FlagDataEndStream, s.id)
		b.join(header[:])
		return
	}
	s.out.taken = true
	run := s.out.frames(s.id, s.outEnd)
	if s.out.n <= smallPiece {
		b.join(plainOf(run))
		return
	}
	b.add(run)
}

// written settles a stream's part in a batch. c.mu is held.
func (s *stream) written(failed bool) {
	s.inBatch = false
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
	waited := time.Since(s.submitted)
	c.queueing += (waited - c.queueing) / 8
	s.submitted = time.Time{}
	if c.settings.QueueDelay != nil {
		c.settings.QueueDelay(waited)
	}
}

// reserveBlock borrows a block and takes as much as it holds off the windows,
// without waiting. There is no block where there is no window.
func (c *conn) reserveBlock(s *stream, class int) (*outBlock, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if min(s.sendWin, c.sendWin) <= 0 || s.err != nil {
		return nil, 0
	}
	b := c.borrowOut(class)
	return b, c.reserveLocked(s, b.capacity())
}

// reserveLocked takes up to n bytes off the windows. c.mu is held.
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
func (s *stream) submit(b *outBlock, end bool, refund int) error {
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
func (s *stream) unsent(b *outBlock) {
	if b != nil {
		if !b.taken {
			s.c.refund(s, b.n)
		}
		b.free()
	}
}

// busy reports whether s's block is still to be written. c.mu is held.
func (s *stream) busy() bool { return s.outBusy && s.err == nil }
