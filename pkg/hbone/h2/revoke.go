package h2

import (
	"crypto/x509"
	"math"
	"time"
)

// Recheck asks ServerConfig.Recheck about every open connection, and ends those
// whose peers it no longer accepts: their streams with its error.
func (s *Server) Recheck() {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.recheck(s.cfg.Recheck)
	}
}

// Recheck asks PoolConfig.Recheck about every open connection, as the server's
// does.
func (p *Pool) Recheck() {
	p.mu.Lock()
	var conns []*conn
	for _, e := range p.entries {
		conns = append(conns, e.conns...)
	}
	for c := range p.over {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.recheck(p.cfg.Recheck)
	}
}

// recheck ends the connection if its peer is not accepted. It comes after the
// connection is registered, so that of a change during the handshake either this
// or Recheck sees both, the connection and the change.
func (c *conn) recheck(accept func(peer []*x509.Certificate) error) {
	if accept == nil {
		return
	}
	if err := accept(c.peer); err != nil {
		c.hangUp(err)
	}
}

// expire makes the connection take no more streams when the peer's certificate
// ends: whoever it is then has to prove it anew. Open streams go on. The caller
// stops the timer.
func (c *conn) expire() *time.Timer {
	life := time.Duration(math.MaxInt64)
	if len(c.peer) > 0 {
		life = time.Until(c.peer[0].NotAfter)
	}
	return time.AfterFunc(life, c.drain)
}
