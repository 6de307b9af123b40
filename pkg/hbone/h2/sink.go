package h2

import (
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/rawio"
)

// aLongTimeAgo is a deadline that ends a pending Read at once.
var aLongTimeAgo = time.Unix(1, 0)

// sink is the socket that a pump delivers to. The connection's reader writes to
// it without waiting while the stream's queue is empty; else the drain goroutine
// does, waiting. stream.rmu makes them take turns.
type sink struct {
	conn     *net.TCPConn
	raw      syscall.RawConn
	moved    *hbone.Counters
	patience time.Duration
	done     chan struct{} // closed when the direction has ended
	ended    bool
	err      error // of the socket

	vec       [][]byte // to write
	n         int      // written
	werr      error
	wait      bool
	writeOnce func(fd uintptr) bool // writeFD, bound once
}

func newSink(conn *net.TCPConn, raw syscall.RawConn, moved *hbone.Counters) *sink {
	k := &sink{conn: conn, raw: raw, moved: moved, patience: patience, done: make(chan struct{})}
	k.writeOnce = k.writeFD
	return k
}

// write writes the pieces of vec, or with wait unset as much of them as the socket
// takes now. vec is consumed: what is left in it has not been written.
func (k *sink) write(vec [][]byte, wait bool) (rest [][]byte, n int, err error) {
	k.vec, k.n, k.werr, k.wait = vec, 0, nil, wait
	err = k.raw.Write(k.writeOnce)
	if err == nil {
		err = k.werr
	}
	rest, k.vec = k.vec, nil
	k.moved.Received.Add(uint64(k.n))
	return rest, k.n, err
}

func (k *sink) writeFD(fd uintptr) bool {
	for len(k.vec) > 0 {
		n, err := writeOnce(int(fd), k.vec)
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
		k.vec = advance(k.vec, n)
	}
	return true
}

func writeOnce(fd int, vec [][]byte) (int, error) {
	if len(vec) == 1 {
		return rawio.Write(fd, vec[0])
	}
	return unix.Writev(fd, vec)
}

// advance drops the first n bytes of vec's pieces.
func advance(vec [][]byte, n int) [][]byte {
	for len(vec) > 0 && n >= len(vec[0]) {
		n -= len(vec[0])
		vec = vec[1:]
	}
	if n > 0 {
		vec[0] = vec[0][n:]
	}
	return vec
}

// patience is how long an application may take nothing of what is left for it once
// the stream has gone. The connection lives no longer than that.
const patience = 10 * time.Second

// giveUp ends a pump's read of the socket, because the stream has gone, and bounds
// its writing.
func (k *sink) giveUp() {
	_ = k.conn.SetReadDeadline(aLongTimeAgo)
	k.hurry()
}

// hurry bounds the next write to the socket.
func (k *sink) hurry() { _ = k.conn.SetWriteDeadline(time.Now().Add(k.patience)) }

// end ends the direction: with a FIN, or after an error of the socket.
func (k *sink) end(err error) {
	if k.ended {
		return
	}
	k.ended = true
	k.err = err
	if err == nil {
		k.err = k.shutdown()
	}
	close(k.done)
}

// shutdown sends a FIN.
func (k *sink) shutdown() (err error) {
	gone := k.raw.Control(func(fd uintptr) { err = os.NewSyscallError("shutdown", rawio.Shutdown(int(fd))) })
	if gone != nil {
		return gone
	}
	return err
}

// deliver takes bytes that the peer has sent on s. It never waits.
func (s *stream) deliver(vec [][]byte) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.sink != nil && !s.draining && !s.drop && !s.eof {
		rest, n, err := s.sink.write(vec, false)
		s.credit(n)
		vec = rest
		if err != nil {
			s.sinkFailed(err)
		}
	}
	if len(vec) == 0 {
		return
	}
	n := 0
	for _, p := range vec {
		n += len(p)
		if !s.drop && !s.eof {
			s.q.add(p)
		}
	}
	if s.drop || s.eof {
		s.c.creditConn(n)
		return
	}
	s.charge(n)
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
	var one [1][]byte
	for p := s.q.first(); p != nil && !s.drop; p = s.q.first() {
		one[0] = p
		if s.readErr != nil {
			s.sink.hurry()
		}
		s.rmu.Unlock()
		_, n, err := s.sink.write(one[:], true)
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
