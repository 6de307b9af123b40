package tlsconn

import (
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// alertTime is how long the alert that ends a connection may take to be sent.
const alertTime = 5 * time.Second

// errShut is what writing after CloseWrite gets.
var errShut = errors.New("write after close_notify")

// WriteRecords sends runs of records in one socket write. A run is laid out as
// layout.go says, its plaintext filled in; its records are sealed where they
// lie, so that afterwards a run holds nothing of use.
func (c *Conn) WriteRecords(runs [][]byte) error {
	c.wmu.Lock()
	defer c.unlock()
	if c.layer == nil {
		return c.writeTLS(runs)
	}
	if err := c.layer.mayWrite(); err != nil {
		return err
	}
	for _, run := range runs {
		update, err := c.layer.rekey(uint64(len(run)/FullRecord) + 1)
		if err != nil {
			return err
		}
		if update != nil {
			c.vec = append(c.vec, update)
		}
		c.layer.seal(run)
		c.vec = append(c.vec, run)
	}
	return c.send()
}

// mayWrite says why nothing more can be written. Conn.wmu is held.
func (l *layer) mayWrite() error {
	if l.shut && l.outErr == nil {
		return errShut
	}
	return l.outErr
}

// send writes what is in c.vec. After an error it is not known what the peer
// has got, and nothing more can be sent. c.wmu is held.
func (c *Conn) send() error {
	var err error
	if len(c.vec) == 1 {
		err = c.t.writeShort(c.vec[0])
	} else if len(c.vec) > 1 {
		todo := c.vec // WriteTo consumes it
		_, err = todo.WriteTo(c.t.conn)
	}
	clear(c.vec)
	c.vec = c.vec[:0]
	if cap(c.vec) > 64 {
		c.vec = nil
	}
	c.layer.outErr = err
	return err
}

// writeTLS is WriteRecords where tls carries the records.
func (c *Conn) writeTLS(runs [][]byte) error {
	c.t.cork()
	var err error
	for _, run := range runs {
		for len(run) > 0 && err == nil {
			n := min(len(run), FullRecord)
			_, err = c.tls.Write(run[HeaderRoom : n-TailRoom])
			run = run[n:]
		}
	}
	if ferr := c.t.uncork(); err == nil {
		err = ferr
	}
	return err
}

// Write sends p, in batches of 16 records.
func (c *Conn) Write(p []byte) (int, error) {
	b := batches.Get().(*batchBuf)
	defer batches.Put(b)
	sent := 0
	for sent < len(p) {
		n := Append(b[:16*FullRecord], 0, p[sent:])
		if err := c.WriteRecords([][]byte{b[:RunLength(n)]}); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// CloseWrite tells the peer that no more will come and ends the socket's
// sending side where it has one.
func (c *Conn) CloseWrite() error {
	err := c.closeNotify()
	if half, ok := c.t.conn.(interface{ CloseWrite() error }); ok {
		return errors.Join(err, half.CloseWrite())
	}
	return err
}

func (c *Conn) closeNotify() error {
	c.wmu.Lock()
	defer c.unlock()
	if c.layer == nil {
		return c.tls.CloseWrite()
	}
	if c.layer.shut || c.layer.outErr != nil {
		return c.layer.outErr
	}
	c.layer.shut = true
	c.vec = append(c.vec, c.layer.small(typeAlert, []byte{1, alertCloseNotify}))
	return c.send()
}

// unlock lets the next writer in, and sends the alert that the reader wanted to
// send meanwhile.
func (c *Conn) unlock() {
	c.wmu.Unlock()
	if c.layer != nil {
		c.sayAlert()
	}
}

// sayAlert sends the fatal alert that is due, unless somebody is writing, who
// will send it then. The reader never waits for a writer.
func (c *Conn) sayAlert() {
	for c.layer.alert.Load() != 0 && c.wmu.TryLock() {
		if alert := c.layer.alert.Swap(0); alert != 0 && c.layer.mayWrite() == nil {
			_ = c.t.conn.SetWriteDeadline(time.Now().Add(alertTime))
			c.vec = append(c.vec, c.layer.small(typeAlert, []byte{2, byte(alert - 1)}))
			_ = c.send()
			if c.layer.outErr == nil {
				c.layer.outErr = &net.OpError{Op: "local error", Err: tls.AlertError(alert - 1)}
			}
		}
		c.wmu.Unlock()
	}
}
