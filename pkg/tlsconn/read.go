package tlsconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// Wait blocks until Records and ReadBatch have something to return without
// waiting: a whole record, or the end of the connection. No buffer is held
// meanwhile. What Records returned before is gone.
func (c *Conn) Wait() error {
	if c.pending || len(c.rest) > 0 || c.readErr != nil || c.t.whole() {
		return nil
	}
	if c.plain != nil {
		batches.Put(c.plain)
		c.plain = nil
	}
	err := c.t.fill()
	if err == io.EOF { // without close_notify: somebody has cut it (RFC 8446 §6.1)
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Records appends to dst the plaintext of all records that have been received,
// in order, and returns dst. It waits only when there is none at all. An error
// may come with data that was received before it. The plaintext lies in the
// buffer that the socket was read into: it is valid until the reader's next call.
func (c *Conn) Records(dst [][]byte) ([][]byte, error) {
	for had := len(dst); ; {
		var err error
		if dst, err = c.buffered(dst); len(dst) > had || err != nil {
			return dst, err
		}
		if err = c.Wait(); err != nil {
			return dst, err
		}
	}
}

// buffered is Records without waiting.
func (c *Conn) buffered(dst [][]byte) ([][]byte, error) {
	if c.layer == nil {
		return c.viaTLS(dst)
	}
	if len(c.rest) > 0 {
		dst = append(dst, c.rest)
		c.rest = nil
	}
	for c.readErr == nil && c.t.whole() {
		p, err := c.open()
		if err != nil {
			c.readErr = c.failed(err)
		} else if len(p) > 0 {
			dst = append(dst, p)
		}
	}
	return dst, c.readErr
}

// open opens the next record, which is buffered to its end.
func (c *Conn) open() ([]byte, error) {
	t := c.t
	size := recordSize(t.in[t.r:])
	if size > maxRecord {
		return nil, alertOverflow
	}
	rec := t.in[t.r : t.r+size]
	t.r += size
	return c.layer.read(rec)
}

// failed is what reading ends with after err. The peer hears why, unless it knows.
func (c *Conn) failed(err error) error {
	alert, ours := err.(tls.AlertError)
	if !ours {
		if _, fromPeer := errors.AsType[*net.OpError](err); fromPeer || err == io.EOF {
			return err
		}
		alert, err = alertInternal, errors.Join(alertInternal, err)
	}
	c.layer.alert.Store(1 + uint32(alert))
	c.sayAlert()
	return &net.OpError{Op: "local error", Err: err}
}

// viaTLS is buffered where tls carries the records.
func (c *Conn) viaTLS(dst [][]byte) ([][]byte, error) {
	if c.readErr != nil || !c.pending && !c.t.whole() {
		return dst, c.readErr
	}
	if c.plain == nil {
		c.plain = batches.Get().(*batchBuf)
	}
	if n := c.readTLS(c.plain[:]); n > 0 {
		dst = append(dst, c.plain[:n])
	}
	return dst, c.readErr
}

// readTLS decrypts what has been received into p.
func (c *Conn) readTLS(p []byte) int {
	n := 0
	for c.readErr == nil && n < len(p) && (c.pending || c.t.whole()) {
		m, err := c.tls.Read(p[n:])
		n += m
		c.pending = m > 0 && n == len(p)
		if !errors.Is(err, errWouldBlock) {
			c.readErr = err
		}
	}
	return n
}

// ReadBatch fills p with as much plaintext as has already been received. It
// blocks only when there is none at all.
func (c *Conn) ReadBatch(p []byte) (int, error) {
	for len(p) > 0 {
		n, err := c.copyBuffered(p)
		if n > 0 {
			return n, nil
		}
		if err == nil {
			err = c.Wait()
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// copyBuffered copies what has been received into p.
func (c *Conn) copyBuffered(p []byte) (int, error) {
	if c.layer == nil {
		return c.readTLS(p), c.readErr
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	for n < len(p) && c.readErr == nil && c.t.whole() {
		rec, err := c.open()
		if err != nil {
			c.readErr = c.failed(err)
			break
		}
		m := copy(p[n:], rec)
		c.rest = rec[m:]
		n += m
	}
	return n, c.readErr
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) { return c.ReadBatch(p) }
