package upstream

import (
	"context"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/http/h2"
)

// multi is a connection that speaks HTTP/2, which requests share. Its fields but
// conn are guarded by Pool.mu.
type multi struct {
	host    host
	conn    *h2.ClientConn
	rested  time.Time // since no request was under way, as far as known
	dropped bool
}

// GetHTTP2 returns room for a request on a connection to the endpoint that speaks
// HTTP/2, or opens one. With fresh it always opens one.
func (p *Pool) GetHTTP2(ctx context.Context, ep *cluster.Endpoint, timeout time.Duration, fresh bool) (*Conn, error) {
	h := hostOf(ep)
	if !fresh {
		if c := p.share(h); c != nil {
			return c, nil
		}
	}
	if !p.admit(h) {
		return nil, reason.New(reason.Overloaded, "connect", ep.String(), nil)
	}
	m, err := p.openMulti(ctx, h, ep, timeout)
	if err != nil {
		p.forget(h)
		return nil, err
	}
	e, ok := m.conn.Exchange()
	if !ok {
		p.drop(m)
		return nil, reason.Newf(reason.UpstreamReset, "connect", ep.String(), "the endpoint ended the connection at once")
	}
	return &Conn{Stream: e, HTTP: e, Fresh: true, pool: p, host: h, shared: m}, nil
}

func (p *Pool) openMulti(ctx context.Context, h host, ep *cluster.Endpoint, timeout time.Duration) (*multi, error) {
	s, err := p.Open(ctx, ep, timeout)
	if err != nil {
		return nil, err
	}
	conn, err := p.client.Connect(ctx, s)
	if err != nil {
		return nil, reason.New(reason.UpstreamReset, "connect", ep.String(), err)
	}
	m := &multi{host: h, conn: conn, rested: time.Now()}
	p.mu.Lock()
	p.hosts[h].multi = append(p.hosts[h].multi, m)
	p.mu.Unlock()
	conn.Ended(func() { p.drop(m) })
	return m, nil
}

// share returns room on a connection that is there, nil when there is none.
func (p *Pool) share(h host) *Conn {
	p.mu.Lock()
	var there []*multi
	if cs := p.hosts[h]; cs != nil {
		there = slices.Clone(cs.multi)
	}
	p.mu.Unlock()
	for _, m := range there {
		if m.conn.Leaving() {
			continue
		}
		if e, ok := m.conn.Exchange(); ok {
			return &Conn{Stream: e, HTTP: e, pool: p, host: h, shared: m}
		}
	}
	return nil
}

// rest notes that a request on m has ended.
func (p *Pool) rest(m *multi) {
	p.mu.Lock()
	m.rested = time.Now()
	over := p.closed || m.conn.Leaving()
	p.mu.Unlock()
	if over && m.conn.InFlight() == 0 {
		p.drop(m)
	}
}

// drop ends a connection and takes it out of the pool's count.
func (p *Pool) drop(m *multi) {
	p.mu.Lock()
	first := !m.dropped
	m.dropped = true
	if cs := p.hosts[m.host]; first && cs != nil {
		cs.multi = slices.DeleteFunc(cs.multi, func(o *multi) bool { return o == m })
	}
	p.mu.Unlock()
	if first {
		_ = m.conn.Close()
		p.forget(m.host)
	}
}

// restingLocked returns the connections without a request since before then, or
// all of those.
func (p *Pool) restingLocked(then time.Time, all bool) (out []*multi) {
	for _, cs := range p.hosts {
		for _, m := range cs.multi {
			if (all || m.rested.Before(then)) && m.conn.InFlight() == 0 {
				out = append(out, m)
			}
		}
	}
	return out
}
