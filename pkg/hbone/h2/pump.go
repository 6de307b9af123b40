package h2

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/rawio"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/pkg/warm"
)

// pump moves bytes from a socket into a stream; the way back is the sink's.
//
//	readable ─▶ reserve window ─▶ borrow a block ─▶ read ─▶ submit
//
// Its own goroutine only waits, so that an idle connection keeps a small stack;
// the rest happens on a warm one.
type pump struct {
	s     *stream
	ctx   context.Context
	conn  *net.TCPConn
	raw   syscall.RawConn
	moved *hbone.Counters
	sink  *sink
	stop  func() bool // of the watch on ctx; nil when ctx never ends
	class int         // of the next block: follows what the socket has

	peekOnce func(fd uintptr) bool // peekFD, bound once
	moveOnce func()                // moveAll, bound once
	over     bool                  // our direction has ended,
	err      error                 // with this

	// Results of one read.
	b        *outBlock
	unused   int // window reserved and not needed
	empty    bool
	eof      bool
	rerr     error
	readOnce func(fd uintptr) bool // readFD, bound once
}

// Pump implements hbone.Stream.
func (s *stream) Pump(ctx context.Context, conn *net.TCPConn, n *hbone.Counters) error {
	p := &pump{s: s, ctx: ctx, conn: conn, moved: n}
	warm.Do(p.begin)
	for !p.over {
		err := p.raw.Read(p.peekOnce)
		if err == nil {
			err = p.rerr
		}
		if err != nil {
			p.finish(err)
			break
		}
		warm.Do(p.moveOnce)
	}
	return p.end()
}

// begin attaches the sink.
func (p *pump) begin() {
	if p.moved == nil {
		p.moved = new(hbone.Counters)
	}
	p.peekOnce, p.moveOnce, p.readOnce = p.peekFD, p.moveAll, p.readFD
	raw, err := p.conn.SyscallConn()
	if err != nil { // cannot be: conn is a connection
		p.over, p.err = true, reason.New(reason.Internal, "pump", p.conn.RemoteAddr().String(), err)
		return
	}
	p.raw = raw
	p.sink = newSink(p.conn, raw, p.moved)
	if p.ctx.Done() != nil {
		p.stop = context.AfterFunc(p.ctx, p.cut)
	}
	p.s.attach(p.sink)
}

// end waits for the way back and says how the connection ended.
func (p *pump) end() error {
	if p.sink == nil {
		return p.err
	}
	if p.stop != nil {
		defer p.stop()
	}
	if socketReset(p.err) {
		p.s.dropInput(p.err)
	}
	<-p.sink.done
	if p.ctx.Err() != nil {
		p.cut()
		return context.Cause(p.ctx)
	}
	p.s.settle()
	return p.s.verdict(p.err, p.sink.err)
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
		k.giveUp()
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

// peekFD reports whether the socket has something for us: bytes, its end, or an
// error, which it keeps, because the kernel tells it once.
func (p *pump) peekFD(fd uintptr) bool {
	for {
		err := rawio.Ready(int(fd))
		switch err {
		case nil:
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			p.rerr = os.NewSyscallError("read", err)
			return true
		}
	}
}

// enough is the size of a read behind which more is expected: anything smaller is
// taken for a whole message.
const enough = 8 << 10

// moveAll moves what the socket has. After its end it ends our direction of the
// stream.
func (p *pump) moveAll() {
	for {
		err := p.read()
		switch {
		case p.empty:
			return
		case p.b != nil:
			n := p.b.n
			if err := p.s.submit(p.b, p.eof, p.unused); err != nil {
				p.over, p.err = true, err
				return
			}
			p.b = nil
			p.moved.Sent.Add(uint64(n))
			if n < enough {
				return
			}
		case err == nil && !p.eof:
			if err := p.s.waitWindow(); err != nil {
				p.over, p.err = true, err
				return
			}
		default:
			p.finish(err)
			return
		}
	}
}

// finish ends our direction of the stream, because the socket ended with err.
func (p *pump) finish(err error) {
	p.over, p.err = true, err
	if gone := p.s.CloseWrite(); gone != nil {
		p.err = gone
	}
}

// waitWindow waits until the stream may send something.
func (s *stream) waitWindow() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.awaitWindow()
}

// read reads once into p.b. With neither block, end nor error there was no window,
// unless p.empty is set: then there was nothing to read.
func (p *pump) read() error {
	p.rerr, p.empty = nil, false
	if err := p.raw.Read(p.readOnce); err != nil {
		return err
	}
	return p.rerr
}

// readFD never waits; it holds window and a block only if there are bytes to put
// into them.
func (p *pump) readFD(fd uintptr) bool {
	c := p.s.c
	b, got := c.reserveBlock(p.s, p.class)
	if got == 0 {
		return true
	}
	want := b.capacity()
	n, err := readRetry(int(fd), b.space(got))
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
		p.empty = true
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
			n, err = rawio.Read(fd, vec[0])
		} else {
			n, err = unix.Readv(fd, vec)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}
