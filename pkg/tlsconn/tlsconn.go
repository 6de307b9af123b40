// Package tlsconn is TLS as a tunnel needs it: few, large system calls, and no
// copy of the bytes that pass.
//
//	WriteRecords ──▶ sealed where they lie ──▶ one socket write of all runs
//	Records ◀── opened where they lie ◀── one socket read of up to 272 KiB
//
// crypto/tls does the handshake. Then a record layer of our own takes over, for
// TLS 1.3 with AES-GCM: it protects records inside the buffers that the sockets
// are read into and written from. Everything else stays with crypto/tls, whose
// records a transport below it gathers into batches; callers see no difference.
//
// Buffers come from pools and are held only while there are bytes in them: a
// connection that waits for its peer holds none.
//
// One reader and one writer may use a Conn at a time; Close, deadlines and the
// accessors may be called by anyone.
package tlsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Conn is a TLS connection whose handshake is done.
type Conn struct {
	t     *transport
	state tls.ConnectionState
	layer *layer     // nil: tls carries the records
	tls   *tls.Conn  // nil: layer does
	wmu   sync.Mutex // serialises writers, so that a batch is one caller's
	vec   net.Buffers

	// Owned by the reader.
	rest    []byte    // of a record that did not fit into ReadBatch's buffer
	plain   *batchBuf // what Records returned, where tls carries the records
	pending bool      // the last record read did not fit: tls holds the rest
	readErr error     // met after data that has been returned first
}

// Client makes c the client's end of a TLS connection. It returns when the
// handshake is done or ctx ends. Client owns c: on error it is closed.
func Client(ctx context.Context, c *net.TCPConn, cfg *tls.Config) (*Conn, error) {
	return ClientOver(ctx, c, cfg)
}

// Server makes c the server's end of a TLS connection. It returns when the
// handshake is done or ctx ends. Server owns c: on error it is closed.
func Server(ctx context.Context, c *net.TCPConn, cfg *tls.Config) (*Conn, error) {
	return ServerOver(ctx, c, cfg)
}

// ClientOver is Client over any connection: another tunnel's stream, or a test's
// pipe. A waiting reader holds a buffer unless c has a SyscallConn.
func ClientOver(ctx context.Context, c net.Conn, cfg *tls.Config) (*Conn, error) {
	return handshake(ctx, c, cfg, tls.Client, false)
}

// ServerOver is Server over any connection. See ClientOver.
func ServerOver(ctx context.Context, c net.Conn, cfg *tls.Config) (*Conn, error) {
	return handshake(ctx, c, cfg, tls.Server, true)
}

func handshake(ctx context.Context, c net.Conn, cfg *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn, server bool) (*Conn, error) {
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true // a tunnel carries bulk; small first records only cost
	cfg.SessionTicketsDisabled = true      // every connection is a full handshake (HBONE)
	keys := &secrets{tee: cfg.KeyLogWriter}
	cfg.KeyLogWriter = keys
	t := newTransport(c)
	conn := &Conn{tls: side(t, cfg), t: t}
	if err := conn.tls.HandshakeContext(ctx); err != nil {
		keys.wipe()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if server {
			lastWords(c)
		}
		_ = c.Close()
		return nil, err
	}
	t.blocking = false
	if err := conn.takeOver(keys, !server); err != nil {
		_ = c.Close()
		return nil, err
	}
	return conn, nil
}

// takeOver lets a layer of our own carry the records, where it can.
func (c *Conn) takeOver(keys *secrets, client bool) error {
	c.state = c.tls.ConnectionState()
	if c.t.left > 0 { // tls.Conn has the beginning of a record
		keys.wipe()
		return nil
	}
	l, err := newLayer(c.state, keys, client)
	if l != nil {
		c.layer, c.tls = l, nil
	}
	return err
}

// linger is how long lastWords waits for the client to close.
const linger = time.Second

// lastWords lets the alert that says why a handshake failed reach the client:
// in TLS 1.3 the client may have sent data by then, and closing a socket with
// unread data sends a reset that overtakes the alert.
func lastWords(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(linger)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}

// Close closes the connection at once, without waiting to tell the peer. It may
// be called again.
func (c *Conn) Close() error {
	err := c.t.conn.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// ConnectionState describes the connection and the peer's certificates.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.state }

// Counts returns what the records have carried besides data.
func (c *Conn) Counts() Counts {
	if c.layer == nil {
		return Counts{}
	}
	n := &c.layer.counts
	return Counts{n.tickets.Load(), n.updatesReceived.Load(), n.updatesSent.Load()}
}

// SetDeadline bounds Read and Write. A Write that passes its deadline leaves the
// connection unusable.
func (c *Conn) SetDeadline(t time.Time) error { return c.t.conn.SetDeadline(t) }

// SetReadDeadline bounds Read.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.t.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds Write. See SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.t.conn.SetWriteDeadline(t) }

// LocalAddr returns our address, the zero AddrPort when the transport has none.
func (c *Conn) LocalAddr() netip.AddrPort { return addrPort(c.t.conn.LocalAddr()) }

// RemoteAddr returns the peer's address, the zero AddrPort when the transport has none.
func (c *Conn) RemoteAddr() netip.AddrPort { return addrPort(c.t.conn.RemoteAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
