// Package relay carries bytes between two plain TCP sockets.
//
//	a ──▶ splice ──▶ b     a's FIN becomes b's FIN, the other way runs on
//	a ◀── splice ◀── b
//
// The bytes stay in the kernel (splice(2)); a copy holds no buffer of its own.
// One Copy owns the two sockets while it runs; different copies are independent.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
)

// Counters are live byte counts of one connection. Sent counts toward the
// destination, Received counts what came back. They may be read at any time.
type Counters struct {
	Sent     atomic.Uint64
	Received atomic.Uint64
}

// chunk is how many bytes move between two updates of the counters.
const chunk = 1 << 20

// Copy moves bytes between a, the client, and b, the destination, until both
// directions have ended. A FIN on one side becomes a FIN on the other while the
// opposite direction runs on without a limit in time. A reset or an abandoned
// socket counts as the end of the stream and is passed on as a FIN.
//
// When ctx ends both sockets are reset and closed, and ctx's cause is returned.
// Otherwise the caller closes a and b. n may be nil.
func Copy(ctx context.Context, a, b *net.TCPConn, n *Counters) error {
	if n == nil {
		n = new(Counters)
	}
	stop := context.AfterFunc(ctx, func() {
		abort(a)
		abort(b)
	})
	back := make(chan error, 1)
	go copyBack(ctx, a, b, &n.Received, back)
	err := copyOneWay(ctx, b, a, &n.Sent)
	if berr := <-back; err == nil {
		err = berr
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// copyBack runs the second direction of a Copy.
func copyBack(ctx context.Context, a, b *net.TCPConn, n *atomic.Uint64, done chan<- error) {
	done <- copyOneWay(ctx, a, b, n)
}

// copyOneWay moves bytes from src to dst until src ends, then ends dst.
func copyOneWay(ctx context.Context, dst, src *net.TCPConn, n *atomic.Uint64) error {
	lim := io.LimitedReader{R: src}
	for {
		lim.N = chunk
		moved, err := dst.ReadFrom(&lim) // splice(2)
		n.Add(uint64(moved))
		if err == nil && lim.N == 0 {
			continue
		}
		if ctx.Err() != nil {
			return err // both sockets are being reset: no FIN
		}
		if cerr := dst.CloseWrite(); err == nil {
			err = cerr
		}
		if Closed(err) {
			if err != nil {
				// The writing end is gone: let the sender know that nobody reads.
				_ = src.CloseRead()
			}
			return nil
		}
		return err
	}
}

// Closed reports whether err says no more than that the other side of a socket
// has gone away, which a relay passes on as an ordinary end of stream.
func Closed(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ENOTCONN)
}

// abort closes c, which ends every pending operation, and makes its peer see a
// reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
