package h2

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// OpenOver opens a stream on a connection of its own that is made over carrier,
// most often another tunnel's stream, with TLS as cfg says. It also returns who
// answered. The connection is never shared and ends with the stream. OpenOver owns
// carrier, also when it fails.
func (p *Pool) OpenOver(ctx context.Context, carrier net.Conn, cfg *tls.Config, req hbone.Request) (hbone.Stream, *hbone.Response, mesh.Identity, error) {
	c, who, err := p.connOver(ctx, carrier, cfg, req.Authority)
	if err != nil {
		return nil, nil, mesh.Identity{}, err
	}
	s, resp, err := c.open(ctx, req)
	c.last()
	if err != nil {
		return nil, resp, who, err
	}
	return s, resp, who, nil
}

// connOver makes the connection, with room for one stream.
func (p *Pool) connOver(ctx context.Context, carrier net.Conn, cfg *tls.Config, to string) (*conn, mesh.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	tc, err := tlsconn.ClientOver(ctx, carrier, cfg)
	if err != nil {
		return nil, mesh.Identity{}, tlsError("open inner tunnel", to, err)
	}
	c := newConn(tc, true, p.cfg.Settings, p.cfg.Budget, p.cfg.Log)
	c.slots = 1
	c.peer = tc.ConnectionState().PeerCertificates
	c.greet(0)
	p.keepOver(c)
	c.recheck(p.cfg.Recheck)
	c.startPings()
	go p.serveOver(c)
	return c, identity(c.peer), nil
}

// keepOver lets Recheck find the connection.
func (p *Pool) keepOver(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over == nil {
		p.over = make(map[*conn]struct{})
	}
	p.over[c] = struct{}{}
}

// serveOver reads the connection until it ends. Its stream tells why it did.
func (p *Pool) serveOver(c *conn) {
	_ = c.run()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.over, c)
}

// last makes the stream that is open the connection's last; without one the
// connection ends.
func (c *conn) last() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = true
	c.finishIfIdle()
	c.kick()
}
