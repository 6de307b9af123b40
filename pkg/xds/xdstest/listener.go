package xdstest

import (
	"errors"
	"net"
	"sync"
)

// listener can break its connections in the middle of what is written to them.
type listener struct {
	net.Listener

	mu     sync.Mutex
	armed  bool
	budget int
}

func newListener(l net.Listener) *listener { return &listener{Listener: l} }

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, l: l}, nil
}

func (l *listener) cutAfter(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.budget = true, n
}

// allow returns how much of n bytes may be written, and whether the cut comes then.
func (l *listener) allow(n int) (int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.armed {
		return n, false
	}
	if n < l.budget {
		l.budget -= n
		return n, false
	}
	l.armed = false
	return l.budget, true
}

type conn struct {
	net.Conn
	l *listener
}

func (c *conn) Write(p []byte) (int, error) {
	n, cut := c.l.allow(len(p))
	n, err := c.Conn.Write(p[:n])
	if !cut || err != nil {
		return n, err
	}
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		// The bytes so far must arrive before the reset does.
		_ = tcp.CloseWrite()
	}
	_ = c.Close()
	return n, errors.New("xdstest: connection cut")
}
