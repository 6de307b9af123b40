// Package tlsconn is TLS as a tunnel needs it: few, large system calls.
//
//	Write ──▶ tls.Conn ──▶ records ──▶ one socket write of up to 128 KiB
//	ReadBatch ◀── tls.Conn ◀── whole records ◀── one socket read of up to 128 KiB
//
// crypto/tls by itself does one write per 16 KiB record and reads one record at
// a time. Here a transport below it gathers the records of one Write, and reads
// ciphertext in gulps that it hands up record by record, so that ReadBatch can
// go on decrypting for as long as whole records are buffered and never blocks
// half way. Buffers come from pools and are held only while there are bytes in
// them: a connection that waits for its peer holds none.
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
	tls *tls.Conn
	t   *transport
	wmu sync.Mutex // serialises writers, so that a batch is one caller's

	// pending says that the last record read did not fit: tls holds the rest.
	pending bool  // owned by the reader
	readErr error // owned by the reader: met after data that has been returned first
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
	t := newTransport(c)
	conn := &Conn{tls: side(t, cfg), t: t}
	if err := conn.tls.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if server {
			lastWords(c)
		}
		_ = c.Close()
		return nil, err
	}
	t.blocking = false
	return conn, nil
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

// Wait blocks until ReadBatch has something to return without waiting: a whole
// record, or the end of the connection. No buffer is held meanwhile.
func (c *Conn) Wait() error {
	if c.pending || c.readErr != nil || c.t.whole() {
		return nil
	}
	return c.t.fill()
}

// ReadBatch fills p with as much plaintext as has already been received, whole
// record after whole record. It blocks only when there is none at all.
func (c *Conn) ReadBatch(p []byte) (int, error) {
	for {
		n, err := c.readBuffered(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if err := c.Wait(); err != nil {
			return 0, err
		}
	}
}

// readBuffered decrypts what has been received into p.
func (c *Conn) readBuffered(p []byte) (int, error) {
	n := 0
	for c.readErr == nil && n < len(p) && (c.pending || c.t.whole()) {
		m, err := c.tls.Read(p[n:])
		n += m
		c.pending = m > 0 && n == len(p)
		if !errors.Is(err, errWouldBlock) {
			c.readErr = err
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, c.readErr
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) { return c.ReadBatch(p) }

// Write sends p, its records gathered into socket writes as large as the batch.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.t.cork()
	n, err := c.tls.Write(p)
	if ferr := c.t.uncork(); err == nil {
		err = ferr
	}
	return n, err
}

// WriteBuffers sends every buffer in turn, each in records of its own, gathered
// into as few socket writes as the batch allows.
func (c *Conn) WriteBuffers(bufs [][]byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.t.cork()
	var err error
	for _, b := range bufs {
		if _, err = c.tls.Write(b); err != nil {
			break
		}
	}
	if ferr := c.t.uncork(); err == nil {
		err = ferr
	}
	return err
}

// CloseWrite tells the peer that no more will come and ends the socket's
// sending side where it has one.
func (c *Conn) CloseWrite() error {
	err := c.tls.CloseWrite()
	if half, ok := c.t.conn.(interface{ CloseWrite() error }); ok {
		return errors.Join(err, half.CloseWrite())
	}
	return err
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
func (c *Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

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
