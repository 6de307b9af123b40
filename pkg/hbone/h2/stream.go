package h2

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// stream is one CONNECT stream, either end of it. It implements hbone.Stream.
type stream struct {
	c      *conn
	id     uint32
	done   chan struct{} // closed when both directions have ended on the wire
	answer chan struct{} // client: closed when the response has arrived
	resp   hbone.Response
	cancel func()    // server: ends the handler's context; nil once accepted
	begun  time.Time // server: when it was taken on

	sendSide // guarded by c.mu
	rmu      sync.Mutex
	recvSide // guarded by rmu
}

// sendSide is guarded by conn.mu.
type sendSide struct {
	cond      sync.Cond
	sendWin   int64 // what the peer lets this stream send
	out       *outBlock
	outEnd    bool // our direction ends behind out
	outBusy   bool // out, or the end, waits to be written
	inBatch   bool // a writer is using out
	queued    bool // in the ready ring
	blocked   bool // in conn.blocked
	next      *stream
	submitted time.Time // when it had to queue; zero otherwise
	sendDone  bool      // our END_STREAM has been written
	recvDone  bool      // the peer's END_STREAM has arrived
	answered  bool      // a response has been sent or received
	removed   bool
	err       error // why the stream is of no more use
	writeLate deadline
}

// recvSide is guarded by stream.rmu.
type recvSide struct {
	rcond    sync.Cond
	window   recvWindow
	q        queue // delivered by the peer, not yet by us
	held     int   // bytes of q whose connection credit waits: the budget is exhausted
	charged  int   // taken from the budget for q
	eof      bool  // nothing will be added to q
	readErr  error // why, unless the peer ended its direction
	drop     bool  // nobody wants what arrives
	sink     *sink // where a pump delivers; nil without one
	draining bool  // a goroutine delivers q to the sink
	readLate deadline
}

func newStream(c *conn, id uint32) *stream {
	s := &stream{c: c, id: id, done: make(chan struct{})}
	s.cond.L = &c.mu
	s.rcond.L = &s.rmu
	s.sendWin = c.peerWindow
	s.window = newRecvWindow(c.settings.StreamWindow, c.settings.MaxStreamWindow)
	return s
}

// sendErr says why the stream cannot send. c.mu is held.
func (s *stream) sendErr() error {
	switch {
	case s.err != nil:
		return s.err
	case s.writeLate.expired:
		return os.ErrDeadlineExceeded
	case s.sendDone:
		return net.ErrClosed
	}
	return nil
}

// ended removes the stream when both directions have ended. c.mu is held.
func (s *stream) ended() {
	if s.sendDone && s.recvDone {
		s.c.remove(s)
	}
}

// Write implements hbone.Stream.
func (s *stream) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := s.writeSome(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *stream) writeSome(p []byte) (int, error) {
	s.c.mu.Lock()
	if err := s.awaitWindow(); err != nil {
		s.c.mu.Unlock()
		return 0, err
	}
	b := s.c.borrowOut(outClass(min(len(p), int(min(s.sendWin, s.c.sendWin)))))
	n := s.c.reserveLocked(s, min(len(p), b.capacity()))
	s.c.mu.Unlock()
	b.copyFrom(p[:n])
	if err := s.submit(b, false, 0); err != nil {
		return 0, err
	}
	return n, nil
}

// CloseWrite implements hbone.Stream.
func (s *stream) CloseWrite() error {
	err := s.submit(nil, true, 0)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Read implements hbone.Stream.
func (s *stream) Read(p []byte) (int, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for {
		if n := copy(p, s.q.first()); n > 0 || len(p) == 0 {
			s.q.drop(n)
			s.consumed(n)
			return n, nil
		}
		switch {
		case s.readErr != nil:
			return 0, s.readErr
		case s.eof:
			return 0, io.EOF
		case s.readLate.expired:
			return 0, os.ErrDeadlineExceeded
		}
		s.rcond.Wait()
	}
}

// Reset implements hbone.Stream.
func (s *stream) Reset(code hbone.Code) {
	s.c.mu.Lock()
	if !s.removed {
		s.c.ctl = appendReset(s.c.ctl, s.id, http2.ErrCode(code))
		s.c.ignored.add(s.id)
		s.c.kick()
	}
	s.c.mu.Unlock()
	s.abort(&hbone.ResetError{Code: code})
}

// Close implements hbone.Stream.
func (s *stream) Close() error {
	s.Reset(hbone.Cancel)
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.discard()
	return nil
}

// discard drops what has arrived and what will. s.rmu is held.
func (s *stream) discard() {
	s.drop = true
	if s.draining {
		return // the drain sees drop
	}
	n := s.q.n
	s.q.clear()
	s.uncharge(n)
}

// abort ends both directions. What the peer had delivered can still be read.
func (s *stream) abort(err error) {
	s.c.mu.Lock()
	first := s.err == nil && !s.removed
	if first {
		s.err = err
	}
	cancel := s.cancel
	s.cancel = nil
	s.c.remove(s)
	s.cond.Broadcast()
	s.c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if first {
		s.endInput(err)
	}
}

// endInput ends the peer's direction: with err, or in good order when err is nil.
func (s *stream) endInput(err error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if !s.eof {
		s.eof = true
		s.readErr = err
		s.releaseWindow()
	}
	if s.sink != nil {
		if err != nil {
			s.sink.giveUp()
		}
		s.finishSink()
	}
	s.rcond.Broadcast()
}

// reasonFor turns the end of a stream into an error with a reason.
func (s *stream) reasonFor(op string, err error) error {
	var reset *hbone.ResetError
	if errors.As(err, &reset) {
		return reason.New(reason.TunnelReset, op, s.c.t.RemoteAddr().String(), err)
	}
	if reason.Of(err) != reason.Internal {
		return err
	}
	return reason.New(reason.TunnelClosed, op, s.c.t.RemoteAddr().String(), err)
}

// SetReadDeadline implements hbone.Stream.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.readLate.set(t, &s.rmu, &s.rcond)
	return nil
}

// SetWriteDeadline implements hbone.Stream.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeLate.set(t, &s.c.mu, &s.cond)
	return nil
}

// LocalAddr implements hbone.Stream.
func (s *stream) LocalAddr() netip.AddrPort { return s.c.t.LocalAddr() }

// RemoteAddr implements hbone.Stream.
func (s *stream) RemoteAddr() netip.AddrPort { return s.c.t.RemoteAddr() }

// Leaving implements hbone.Stream.
func (s *stream) Leaving() bool { return s.c.leaving() }

// Done implements hbone.Stream.
func (s *stream) Done() <-chan struct{} { return s.done }

// deadline is a time after which waiting is over.
type deadline struct {
	timer   *time.Timer
	expired bool
}

// set moves the deadline; the zero time is none. mu, which guards d, is held.
func (d *deadline) set(t time.Time, mu *sync.Mutex, cond *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.timer == timer {
			d.expired = true
			cond.Broadcast()
		}
	})
	d.timer = timer
}
