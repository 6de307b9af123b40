package h2

import (
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// aLongTimeAgo is a deadline that ends a pending Read at once.
var aLongTimeAgo = time.Unix(1, 0)

// sink is the socket that a pump delivers to. The connection's reader writes to
// it without waiting while the stream's queue is empty; else the drain goroutine
// does, waiting. stream.rmu makes them take turns.
type sink struct {
	conn  *net.TCPConn
	raw   syscall.RawConn
	moved *hbone.Counters
	done  chan struct{} // closed when the direction has ended
	ended bool
	err   error // of the socket

	p         []byte // to write
	n         int    // written
	werr      error
	wait      bool
	writeOnce func(fd uintptr) bool // writeFD, bound once
}

func newSink(conn *net.TCPConn, raw syscall.RawConn, moved *hbone.Counters) *sink {
	k := &sink{conn: conn, raw: raw, moved: moved, done: make(chan struct{})}
	k.writeOnce = k.writeFD
	return k
}

// write writes p, or with wait unset as much of it as the socket takes now.
func (k *sink) write(p []byte, wait bool) (int, error) {
	k.p, k.n, k.werr, k.wait = p, 0, nil, wait
	err := k.raw.Write(k.writeOnce)
	if err == nil {
		err = k.werr
	}
	k.p = nil
	k.moved.Received.Add(uint64(k.n))
	return k.n, err
}

func (k *sink) writeFD(fd uintptr) bool {
	for k.n < len(k.p) {
		n, err := unix.Write(int(fd), k.p[k.n:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return !k.wait || k.n > 0
		case err != nil:
			k.werr = os.NewSyscallError("write", err)
			return true
		}
		k.n += n
	}
	return true
}

// interrupt ends a pump's read of the socket, because the stream has gone.
func (k *sink) interrupt() { _ = k.conn.SetReadDeadline(aLongTimeAgo) }

// end ends the direction: with a FIN, or after an error of the socket.
func (k *sink) end(err error) {
	if k.ended {
		return
	}
	k.ended = true
	k.err = err
	if err == nil {
		k.err = k.conn.CloseWrite()
	}
	close(k.done)
}

// deliver takes bytes that the peer has sent on s. It never waits.
func (s *stream) deliver(p []byte) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.sink != nil && !s.draining && !s.drop && !s.eof {
		n, err := s.sink.write(p, false)
		s.credit(n)
		p = p[n:]
		if err != nil {
			s.sinkFailed(err)
		}
	}
	if len(p) == 0 {
		return
	}
	if s.drop || s.eof {
		s.c.creditConn(len(p))
		return
	}
	s.q.add(p)
	s.charge(len(p))
	if s.sink != nil && !s.draining {
		s.draining = true
		go s.drain()
	}
	s.rcond.Signal()
}

// drain delivers the queue to the sink, at the destination's pace.
func (s *stream) drain() {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for p := s.q.first(); p != nil && !s.drop; p = s.q.first() {
		s.rmu.Unlock()
		n, err := s.sink.write(p, true)
		s.rmu.Lock()
		s.q.drop(n)
		s.consumed(n)
		if err != nil {
			s.sinkFailed(err)
		}
	}
	s.draining = false
	if s.drop {
		s.discard()
	}
	s.finishSink()
}

// finishSink passes the end of the stream on once everything has been delivered.
// s.rmu is held.
func (s *stream) finishSink() {
	if s.sink != nil && s.eof && s.q.n == 0 && !s.draining {
		s.sink.end(nil)
	}
}

// sinkFailed ends the direction because the destination has gone. s.rmu is held.
func (s *stream) sinkFailed(err error) {
	s.sink.end(err)
	s.discard()
}

// charge accounts for n bytes that were put into the queue. While the node's
// budget is exhausted their connection credit is held back until they leave.
func (s *stream) charge(n int) {
	if s.c.budget.Force(int64(n)) {
		s.c.creditConn(n)
	} else {
		s.held += n
	}
}

// consumed accounts for n bytes that left the queue toward their reader.
func (s *stream) consumed(n int) {
	s.uncharge(n)
	s.creditStream(n)
	s.c.wake()
}

// credit accounts for n bytes that were delivered as they arrived.
func (s *stream) credit(n int) {
	s.c.creditConn(n)
	s.creditStream(n)
}

// creditStream lets the peer send as much more on s. s.rmu is held.
func (s *stream) creditStream(n int) {
	if s.eof {
		return
	}
	more := s.window.consume(n, s.c.roundTrip(), s.c.budget)
	if more == 0 {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.removed && !s.recvDone {
		s.c.ctl = appendWindowUpdate(s.c.ctl, s.id, more)
		s.c.measure()
	}
}

// uncharge accounts for n bytes that left the queue.
func (s *stream) uncharge(n int) {
	s.c.budget.Give(int64(n))
	if back := min(n, s.held); back > 0 {
		s.held -= back
		s.c.creditConn(back)
		s.c.wake()
	}
}
