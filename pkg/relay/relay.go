// Package relay carries bytes between two plain TCP sockets.
//
//	a ──▶ pipe ──▶ b     a's FIN becomes b's FIN, the other way runs on
//	a ◀── pipe ◀── b
//
// The bytes stay in the kernel: splice(2) moves them from socket to pipe to
// socket. A pipe is borrowed while there are bytes in it; a direction that waits
// holds none, so an idle connection costs two goroutines and nothing else.
//
// One Copy owns the two sockets while it runs; different copies are independent.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Counters are live byte counts of one connection. Sent counts toward the
// destination, Received counts what came back. They may be read at any time.
type Counters struct {
	Sent     atomic.Uint64
	Received atomic.Uint64
}

// Copy moves bytes between a, the client, and b, the destination, until both
// directions have ended. A FIN on one side becomes a FIN on the other while the
// opposite direction runs on without a limit in time. A reset ends both: there is
// nobody left to answer. It counts as the end of the stream and is passed on as a
// FIN, the last thing that the other side gets before the caller closes.
//
// When ctx ends both sockets are reset and closed, and ctx's cause is returned.
// Otherwise the caller closes a and b. n may be nil.
func Copy(ctx context.Context, a, b *net.TCPConn, n *Counters) error {
	if n == nil {
		n = new(Counters)
	}
	there, err := newDirection(ctx, b, a, &n.Sent)
	if err != nil {
		return err
	}
	back, err := newDirection(ctx, a, b, &n.Received)
	if err != nil {
		return err
	}
	gone := new(atomic.Bool)
	there.gone, back.gone = gone, gone
	stop := context.AfterFunc(ctx, func() {
		abort(a)
		abort(b)
	})
	ended := make(chan error, 1)
	go back.runTo(ended)
	err = errors.Join(there.run(), <-ended)
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// abort closes c, which ends every pending operation, and makes its peer see a
// reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// Closed reports whether err says no more than that the other side of a socket
// has gone away, which a relay passes on as an ordinary end of stream.
func Closed(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ENOTCONN)
}

// direction is one way of a Copy.
type direction struct {
	ctx      context.Context
	dst, src *net.TCPConn
	to, from syscall.RawConn
	moved    *atomic.Uint64
	gone     *atomic.Bool // of both directions: one of the sockets was reset

	p     *pipe // held while there are bytes in it
	n     int   // bytes in p
	err   error // of the last splice
	fill  func(fd uintptr) bool
	empty func(fd uintptr) bool
}

func newDirection(ctx context.Context, dst, src *net.TCPConn, moved *atomic.Uint64) (*direction, error) {
	to, err := dst.SyscallConn()
	if err != nil {
		return nil, err
	}
	from, err := src.SyscallConn()
	if err != nil {
		return nil, err
	}
	d := &direction{ctx: ctx, dst: dst, src: src, to: to, from: from, moved: moved}
	d.fill, d.empty = d.fillFrom, d.emptyInto
	return d, nil
}

func (d *direction) runTo(ended chan<- error) { ended <- d.run() }

// run moves bytes until src ends, then ends dst.
func (d *direction) run() error {
	rerr, werr := d.move()
	if d.ctx.Err() != nil {
		return nil // both sockets are being reset: no FIN
	}
	if errors.Is(rerr, os.ErrDeadlineExceeded) && d.gone.Load() {
		return nil // the other direction met the reset
	}
	if errors.Is(rerr, syscall.ECONNRESET) {
		d.gone.Store(true)
		defer d.endOther()
	}
	if werr == nil {
		werr = d.dst.CloseWrite()
	}
	if werr != nil {
		_ = d.src.CloseRead() // nobody reads any more
	}
	for _, err := range [...]error{rerr, werr} {
		if !Closed(err) {
			return err
		}
	}
	return nil
}

// endOther ends the direction from dst to src, which was reset.
func (d *direction) endOther() {
	_ = d.dst.SetReadDeadline(time.Unix(1, 0))
	_ = d.src.SetWriteDeadline(time.Unix(1, 0))
}

// move moves bytes until reading or writing ends; the end of src is no error.
func (d *direction) move() (rerr, werr error) {
	for {
		d.n, d.err = 0, nil
		if err := d.from.Read(d.fill); err != nil {
			return err, nil
		}
		if d.n == 0 {
			return d.err, nil
		}
		for d.n > 0 {
			err := d.to.Write(d.empty)
			if err == nil {
				err = d.err
			}
			if err != nil {
				d.p.close() // with bytes in it: of no more use
				d.p = nil
				return nil, err
			}
		}
		d.p.giveBack()
		d.p = nil
	}
}

// fillFrom runs when src may be readable; it keeps a pipe only if bytes came.
func (d *direction) fillFrom(fd uintptr) bool {
	p, err := borrowPipe()
	if err != nil {
		d.err = err
		return true
	}
	n, err := splice(int(fd), p.w, pipeSize)
	if n > 0 {
		d.p, d.n = p, n
		return true
	}
	p.giveBack()
	if err == unix.EAGAIN {
		return false
	}
	d.err = err
	return true
}

// emptyInto runs when dst may be writable.
func (d *direction) emptyInto(fd uintptr) bool {
	n, err := splice(d.p.r, int(fd), d.n)
	if err == unix.EAGAIN {
		return false
	}
	d.n -= n
	d.err = err
	d.moved.Add(uint64(n))
	return true
}

// splice moves up to n bytes without waiting. EAGAIN is returned bare.
func splice(from, to, n int) (int, error) {
	for {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch err {
		case nil:
			return int(moved), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		default:
			return 0, os.NewSyscallError("splice", err)
		}
	}
}
