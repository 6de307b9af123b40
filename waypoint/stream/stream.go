// Package stream is one byte stream with two ends that close independently,
// whatever carries it: a tunnel's stream or a TCP connection.
//
// A Stream has one reader and one writer at a time; Reset, Close and the
// deadlines may be used by anyone.
package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

// Stream is a connection to a client or to an endpoint.
type Stream interface {
	io.Reader
	io.Writer
	CloseWrite() error
	// Reset ends both directions at once; the peer learns that it was not in order.
	Reset()
	// Close ends what is still open. It may be called more than once.
	Close() error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Leaving reports whether what carries a stream is about to end, so that nothing
// should rest on it. Of streams that end without notice it is never true.
func Leaving(s Stream) bool {
	l, ok := s.(interface{ Leaving() bool })
	return ok && l.Leaving()
}

// Past is a deadline that has passed: it ends a read or a write that waits.
var Past = time.Unix(1, 0)

type tunnel struct{ hbone.Stream }

// FromTunnel wraps a tunnel's stream.
func FromTunnel(s hbone.Stream) Stream { return tunnel{s} }

func (t tunnel) Reset() { t.Stream.Reset(hbone.Cancel) }

type tcp struct{ *net.TCPConn }

// FromTCP wraps a TCP connection.
func FromTCP(c *net.TCPConn) Stream { return tcp{c} }

func (t tcp) Reset() {
	_ = t.SetLinger(0)
	_ = t.TCPConn.Close()
}

func (t tcp) Close() error {
	if err := t.TCPConn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Alive reports whether an idle stream can still be used: nothing has arrived on
// it, not even its end. It does not wait.
func Alive(s Stream) bool {
	if s.SetReadDeadline(Past) != nil {
		return false
	}
	var one [1]byte
	_, err := s.Read(one[:])
	var timeout net.Error
	expired := errors.As(err, &timeout) && timeout.Timeout()
	if t, ok := s.(tcp); ok && expired {
		expired = !readable(t.TCPConn) // a socket does not look before it obeys the deadline
	}
	return expired && s.SetReadDeadline(time.Time{}) == nil
}

// Relay moves bytes both ways between a client and an endpoint until both
// directions have ended, each on its own. n.Sent counts bytes to the endpoint.
// When ctx ends both are reset and ctx's cause is returned. Otherwise both stay
// the caller's to close.
func Relay(ctx context.Context, client, endpoint Stream, n *relay.Counters) error {
	stop := context.AfterFunc(ctx, func() { client.Reset(); endpoint.Reset() })
	defer stop()
	var wg sync.WaitGroup
	var back error
	wg.Go(func() { back = oneWay(client, endpoint, n.Received.Add) })
	forth := oneWay(endpoint, client, n.Sent.Add)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(forth, back)
}

const relayBuffer = 64 << 10

// oneWay copies until src ends and passes the end on. A peer that went away ends
// its direction like a FIN, as everywhere in the mesh.
func oneWay(dst, src Stream, count func(uint64) uint64) error {
	buf := make([]byte, 4<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			count(uint64(n))
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return orderly(werr) // the other direction may still have something to deliver
			}
			if n == len(buf) && n < relayBuffer {
				buf = make([]byte, relayBuffer)
			}
		}
		if err != nil {
			if cerr := dst.CloseWrite(); err == io.EOF {
				return orderly(cerr)
			}
			return orderly(err)
		}
	}
}

func orderly(err error) error {
	var reset *hbone.ResetError
	if err == nil || relay.Closed(err) || errors.As(err, &reset) && reset.Benign() {
		return nil
	}
	return err
}
