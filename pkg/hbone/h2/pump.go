package h2

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

// pump moves bytes from a socket into a stream, in its own goroutine; the way
// back is the sink's.
//
//	readable ─▶ reserve window ─▶ borrow a block ─▶ read ─▶ submit
type pump struct {
	s     *stream
	conn  *net.TCPConn
	raw   syscall.RawConn
	moved *hbone.Counters
	class int // of the next block: follows what the socket has

	// Results of one read.
	b        *outBlock
	vec      [8][]byte
	unused   int // window reserved and not needed
	eof      bool
	rerr     error
	readOnce func(fd uintptr) bool // readFD, bound once
}

// Pump implements hbone.Stream.
func (s *stream) Pump(ctx context.Context, conn *net.TCPConn, n *hbone.Counters) error {
	if n == nil {
		n = new(hbone.Counters)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return reason.New(reason.Internal, "pump", conn.RemoteAddr().String(), err)
	}
	p := &pump{s: s, conn: conn, raw: raw, moved: n}
	p.readOnce = p.readFD
	k := newSink(conn, raw, n)
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, p.cut)
		defer stop()
	}
	s.attach(k)
	err = p.run()
	if socketReset(err) {
		s.dropInput(err)
	}
	<-k.done
	if ctx.Err() != nil {
		p.cut()
		return context.Cause(ctx)
	}
	s.settle()
	return s.verdict(err, k.err)
}

// cut ends everything at once: ctx has ended.
func (p *pump) cut() {
	_ = p.conn.SetLinger(0)
	_ = p.conn.Close() // first: the end of the stream would become a FIN
	p.s.Reset(hbone.Cancel)
}

// attach makes k the destination of what the peer sends, and of what it has
// sent already.
func (s *stream) attach(k *sink) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.sink = k
	if s.readErr != nil {
		k.interrupt()
	}
	if s.q.n > 0 {
		s.draining = true
		go s.drain()
		return
	}
	s.finishSink()
}

// dropInput ends the peer's direction after the socket was reset: nothing can be
// delivered any more.
func (s *stream) dropInput(err error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.sinkFailed(err)
}

// settle ends on the wire what has ended here: the peer need not send what
// nobody will read (RFC 9113 §8.1).
func (s *stream) settle() {
	select {
	case <-s.done:
	default:
		code := hbone.NoError
		if s.c.client {
			code = hbone.Cancel
		}
		s.Reset(code)
	}
}

// verdict is what Pump returns: nil for everything that counts as an ordinary end.
func (s *stream) verdict(out, in error) error {
	s.rmu.Lock()
	err := s.readErr
	s.rmu.Unlock()
	for _, e := range [...]error{err, out, in} {
		var reset *hbone.ResetError
		if errors.As(e, &reset) && reset.Benign() {
			continue
		}
		if _, tunnel := errors.AsType[*reason.Error](e); tunnel || !relay.Closed(e) {
			return s.reasonFor("pump", e)
		}
	}
	return nil
}

// socketReset reports whether err says that the socket is gone in both directions.
func socketReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// run moves bytes until the socket ends, then ends our direction of the stream.
func (p *pump) run() error {
	for {
		err := p.read()
		if p.b != nil {
			n := p.b.n
			if err := p.s.submit(p.b, p.eof, p.unused); err != nil {
				return err
			}
			p.b = nil
			p.moved.Sent.Add(uint64(n))
			continue
		}
		if err == nil && !p.eof {
			if err = p.s.waitWindow(); err != nil {
				return err
			}
			continue
		}
		if gone := p.s.CloseWrite(); gone != nil {
			return gone
		}
		return err
	}
}

// waitWindow waits until the stream may send something.
func (s *stream) waitWindow() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.awaitWindow()
}

// read reads once into p.b. With neither block, end nor error there was no window.
func (p *pump) read() error {
	p.rerr = nil
	if err := p.raw.Read(p.readOnce); err != nil {
		return err
	}
	return p.rerr
}

// readFD runs when the socket may be readable; it holds window and a block only
// if there are bytes to put into them.
func (p *pump) readFD(fd uintptr) bool {
	c := p.s.c
	b, got := c.reserveBlock(p.s, p.class)
	if got == 0 {
		return true
	}
	want := b.capacity()
	n, err := readRetry(int(fd), b.space(p.vec[:0], got))
	if n > 0 {
		b.n = n
		p.b, p.unused = b, got-n
		p.adapt(n, want)
		return true
	}
	b.free()
	c.mu.Lock()
	c.refund(p.s, got)
	c.mu.Unlock()
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		p.rerr = os.NewSyscallError("read", err)
	default:
		p.eof = true
	}
	return true
}

// adapt picks the next block's size: larger after a full one, smaller after one
// that was mostly empty.
func (p *pump) adapt(n, want int) {
	switch {
	case n == want && p.class < largestOut:
		p.class++
	case p.class > 0 && n < outSizes[p.class-1]/2:
		p.class--
	}
}

func readRetry(fd int, vec [][]byte) (n int, err error) {
	for {
		if len(vec) == 1 {
			n, err = unix.Read(fd, vec[0])
		} else {
			n, err = unix.Readv(fd, vec)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}
