package h2

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// held is a transport whose writes wait.
type held struct{ release chan struct{} }

func (h held) WriteRecords([][]byte) error            { <-h.release; return nil }
func (h held) Wait() error                            { <-h.release; return nil }
func (h held) Records(dst [][]byte) ([][]byte, error) { return dst, nil }
func (h held) CloseWrite() error                      { return nil }
func (h held) Close() error                           { return nil }
func (h held) LocalAddr() netip.AddrPort              { return netip.AddrPort{} }
func (h held) RemoteAddr() netip.AddrPort             { return netip.AddrPort{} }

// heldConn is a client's connection whose writes wait, with open streams.
func heldConn(streams int) (*conn, []*stream, held) {
	t := held{make(chan struct{})}
	c := newConn(t, true, Settings{}, nil, nil)
	list := make([]*stream, streams)
	for i := range list {
		list[i] = newStream(c, c.nextID)
		list[i].answered = true
		c.streams[c.nextID] = list[i]
		c.nextID += 2
	}
	return c, list, t
}

// under returns what f does with the connection's lock held, as a condition.
func (c *conn) under(f func() bool) func() bool {
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return f()
	}
}

// A stream that is reset while its bytes wait to be written gives the
// connection's window back: else enough resets would stop every stream.
func TestResetKeepsConnectionWindow(t *testing.T) {
	t.Parallel()
	c, s, transport := heldConn(20)
	const each = 3 << 10
	written := make(chan error, len(s))
	write := func(s *stream) { _, err := s.Write(make([]byte, each)); written <- err }
	go write(s[0])
	hbonetest.Until(t, "the first write", c.under(func() bool { return s[0].inBatch }))
	for _, s := range s[1:] {
		go write(s)
		hbonetest.Until(t, "a write to queue", c.under(func() bool { return s.queued }))
	}
	for _, s := range s[1:] {
		s.Reset(hbone.Cancel)
		if err := <-written; err == nil {
			t.Error("written after the reset")
		}
	}
	close(transport.release)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if _, err := s[1].Write([]byte("late")); err == nil {
		t.Error("written after the reset")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sendWin != defaultWindow-each {
		t.Errorf("connection window is %d, want %d: %d were sent", c.sendWin, defaultWindow-each, each)
	}
}

// A stream that waits for the connection's window waits once, whatever the peer
// adds to the stream's own.
func TestBlockedOnce(t *testing.T) {
	t.Parallel()
	c, s, transport := heldConn(1)
	close(transport.release)
	c.sendWin = 0
	written := make(chan error, 1)
	go func() { _, err := s[0].Write([]byte("x")); written <- err }()
	for range 50 {
		hbonetest.Until(t, "the writer to wait", c.under(func() bool { return s[0].blocked }))
		c.mu.Lock()
		s[0].cond.Broadcast()
		if n := len(c.blocked); n > 1 {
			t.Errorf("%d entries for one stream", n)
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	c.sendWin = 10
	c.unblock()
	c.mu.Unlock()
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// ending is a transport that notes what happens behind its end.
type ending struct {
	held
	ended, closed, late atomic.Bool
}

func (e *ending) WriteRecords([][]byte) error {
	e.late.Store(e.late.Load() || e.ended.Load())
	return nil
}

func (e *ending) CloseWrite() error { e.ended.Store(true); return nil }
func (e *ending) Close() error      { e.closed.Store(true); return nil }

// A connection that has said its last word answers nothing more, and waits for
// the peer to close rather than reset what is still on its way.
func TestNothingBehindTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ending{}
		c := newConn(e, false, Settings{}, nil, nil)
		c.mu.Lock()
		c.away = true
		c.finishIfIdle()
		c.kick()
		c.mu.Unlock()
		synctest.Wait()
		if !e.ended.Load() {
			t.Fatal("not ended")
		}
		c.mu.Lock()
		c.ctl = appendPing(c.ctl, true, [8]byte{})
		c.kick()
		c.mu.Unlock()
		time.Sleep(5 * time.Second)
		if e.late.Load() || e.closed.Load() {
			t.Errorf("written behind the end: %v; closed before the peer: %v", e.late.Load(), e.closed.Load())
		}
		time.Sleep(farewell)
		if !e.closed.Load() {
			t.Error("never closed")
		}
	})
}
