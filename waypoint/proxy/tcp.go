package proxy

import (
	"context"
	"maps"
	stdhttp "net/http"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// connection is one TCP connection on its way through.
type connection struct {
	p        *Proxy
	caller   *listener.Caller
	name     string
	began    time.Time
	dest     *config.Destination
	endpoint *cluster.Endpoint
	n        relay.Counters // Sent: to the endpoint
	series   *metrics.Conn
	cancel   context.CancelCauseFunc // ends the relay
}

// OfferTCP implements listener.Handler: the client's CONNECT is accepted once
// the endpoint has answered.
func (p *Proxy) OfferTCP(ctx context.Context, o *listener.Offer) {
	defer p.enter()()
	c := &connection{p: p, caller: &o.Caller, name: o.Name, began: time.Now()}
	endpoint, err := c.open(ctx)
	if err != nil {
		c.refuse(err)
		o.Reject(statusOf(err))
		return
	}
	defer endpoint.Close()
	client, err := o.Accept()
	if err != nil {
		c.refuse(reason.New(reason.DownstreamClosed, "accept", o.Source.String(), err))
		return
	}
	defer client.Close()
	c.relay(ctx, client, endpoint)
}

// TCP implements listener.Handler: the connection was accepted to find out what
// it is.
func (p *Proxy) TCP(ctx context.Context, lc *listener.Conn) {
	defer p.enter()()
	c := &connection{p: p, caller: &lc.Caller, name: lc.Name, began: time.Now()}
	endpoint, err := c.open(ctx)
	if err != nil {
		c.refuse(err)
		lc.Stream.Reset()
		return
	}
	defer endpoint.Close()
	if len(lc.First) > 0 {
		if _, err := endpoint.Write(lc.First); err != nil {
			c.refuse(reason.New(reason.UpstreamReset, "write", c.endpoint.String(), err))
			lc.Stream.Reset()
			return
		}
		c.n.Sent.Add(uint64(len(lc.First)))
		lc.First = nil
	}
	c.relay(ctx, lc.Stream, endpoint)
}

func statusOf(err error) int {
	switch reason.Of(err) {
	case reason.RBACDenied:
		return stdhttp.StatusForbidden
	case reason.UnservedAddress:
		return stdhttp.StatusNotFound
	}
	return stdhttp.StatusServiceUnavailable
}

// open asks the network filters and connects to an endpoint, to another one when
// the first cannot be reached.
func (c *connection) open(ctx context.Context) (stream.Stream, error) {
	snap, dest := c.p.lookup(c.name)
	if dest == nil {
		return nil, reason.New(reason.UnservedAddress, "serve connection", c.name, nil)
	}
	c.dest = dest
	if err := c.authorize(dest); err != nil {
		return nil, err
	}
	var tried []*cluster.Endpoint
	for {
		ep, cl, err := c.p.endpointOf(dest, snap, c.caller.Destination, tried)
		if err != nil {
			return nil, err
		}
		c.endpoint = ep
		s, err := c.p.cfg.Upstream.Open(ctx, ep, cl.ConnectTimeout)
		if err == nil {
			return s, nil
		}
		if tried = append(tried, ep); len(tried) == maxAttempts || !worthAnother(err) || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c *connection) authorize(dest *config.Destination) error {
	x := filter.Exchange{Source: c.caller.Source, Identity: c.caller.Identity, Destination: c.caller.Destination}
	return dest.NetworkFilters.Connection(&x)
}

// recheck ends the connection if the destination's present policy refuses it.
func (c *connection) recheck() {
	if _, dest := c.p.lookup(c.name); dest != nil {
		if err := c.authorize(dest); err != nil {
			c.cancel(reason.New(reason.PolicyChanged, "recheck connection", c.caller.Source.String(), err))
		}
	}
}

// Recheck applies every change of policy to the TCP connections that are open,
// until ctx ends. Requests are authorized one by one anyway.
func (p *Proxy) Recheck(ctx context.Context) error {
	for {
		changed := p.cfg.Store.Changed()
		p.mu.Lock()
		open := slices.Collect(maps.Keys(p.conns))
		p.mu.Unlock()
		for _, c := range open {
			c.recheck()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// track makes c known to Recheck until the returned function is called.
func (p *Proxy) track(c *connection) (forget func()) {
	p.mu.Lock()
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	c.recheck() // the policy may have changed since the connection was authorized
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}
}

// relay moves bytes until both directions have ended, and records.
func (c *connection) relay(ctx context.Context, client, endpoint stream.Stream) {
	c.endpoint.Begin()
	defer c.endpoint.End()
	ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	defer c.p.track(c)()
	if m := c.p.cfg.TCP; m != nil {
		c.series = m.Series(c.p.flow(c.caller, c.dest, c.endpoint)).Open(&c.n.Sent, &c.n.Received)
	}
	err := stream.Relay(ctx, client, endpoint, &c.n)
	if c.series != nil {
		c.series.Close(err)
	}
	if c.p.cfg.Log != nil {
		c.p.cfg.Log.Complete(c.line(err))
	}
}

func (c *connection) line(err error) *accesslog.Connection {
	l := &accesslog.Connection{
		Source:      c.p.source(c.caller),
		Destination: party(c.endpoint),
		HBONEAddr:   c.caller.Destination.String(),
		Direction:   accesslog.Inbound,
		BytesSent:   c.n.Received.Load(),
		BytesRecv:   c.n.Sent.Load(),
		Duration:    time.Since(c.began),
		Err:         err,
	}
	if c.dest != nil {
		l.Service = c.dest.Service.Hostname
	}
	return l
}

// refuse records a connection that came to nothing.
func (c *connection) refuse(err error) {
	if m := c.p.cfg.TCP; m != nil {
		m.Series(c.p.flow(c.caller, c.dest, c.endpoint)).Failed(reason.Of(err))
	}
	if c.p.cfg.Log != nil {
		c.p.cfg.Log.Failed(c.line(err))
	}
}
