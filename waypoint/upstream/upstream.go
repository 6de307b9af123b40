// Package upstream holds the waypoint's connections to endpoints: how they are
// opened, through a tunnel or plainly, and the pool of those that can carry
// another request.
//
//	Get ─▶ idle connection of the endpoint, still alive ─┐
//	   └─▶ open: HBONE stream or TCP ────────────────────┴─▶ Conn ─▶ request ─▶ Put, or Close
//	GetHTTP2 ─▶ the same, of a connection that several requests share (multi.go)
//
// An idle connection may be closed by the endpoint at any moment. One that has
// rested a while is looked at before it is used; the short rest that remains is
// the caller's to retry. None rests in a tunnel whose peer is about to end: a
// ztunnel that has been replaced would live on for it. Everything is safe for
// concurrent use; a Conn belongs to one request at a time.
package upstream

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/http/h2"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// Config configures a Pool.
type Config struct {
	Self    mesh.Identity // presented to endpoints
	LocalIP netip.Addr
	Tunnels hbone.Opener
	Dial    func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error)
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error) // nil = the system's

	HTTP           h1.Options
	ConnectTimeout time.Duration // default 10 s
	IdleTimeout    time.Duration // default 1 h, as upstream's waypoint
	MaxConns       int           // per endpoint; default 10240
	MaxIdle        int           // per endpoint; default 1024
}

// Pool opens and keeps connections.
type Pool struct {
	cfg    Config
	client *h2.Client

	mu     sync.Mutex
	hosts  map[host]*conns
	closed bool
}

// host is what two connections must agree in to be exchangeable.
type host struct {
	addr  netip.AddrPort
	name  string // "" = addr says it all
	hbone bool
	id    mesh.Identity
}

func (h host) String() string {
	return (&cluster.Endpoint{Addr: h.addr, Host: h.name}).String()
}

// conns is one host's connections, guarded by Pool.mu.
type conns struct {
	idle  []*Conn // the one used last is at the end
	multi []*multi
	open  int
}

// NewPool returns an empty pool.
func NewPool(cfg Config) *Pool {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Hour
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 10240
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 1024
	}
	return &Pool{cfg: cfg, client: h2.NewClient(cfg.HTTP), hosts: make(map[host]*conns)}
}

// Codec sends a request and reads its response.
type Codec interface {
	WriteRequest(*http.Request) (bodyErr, writeErr error)
	ReadResponse(*http.Request, *http.Response) error
	Reusable() bool  // another request can follow
	Received() int64 // bytes so far
	Sent() int64
}

// Conn is a connection to an endpoint, or one request's share of it.
type Conn struct {
	stream.Stream
	HTTP  Codec
	Fresh bool // no request has been sent on it yet

	pool   *Pool
	host   host
	shared *multi // nil: the connection is all this request's
	rested time.Time
	once   sync.Once
}

// Get returns an idle connection, or opens one. With fresh it always opens one.
func (p *Pool) Get(ctx context.Context, ep *cluster.Endpoint, timeout time.Duration, fresh bool) (*Conn, error) {
	h := hostOf(ep)
	for !fresh {
		c := p.takeIdle(h)
		if c == nil {
			break
		}
		if c.usable() {
			c.Fresh = false
			return c, nil
		}
		c.Close()
	}
	if !p.admit(h) {
		return nil, reason.New(reason.Overloaded, "connect", ep.String(), nil)
	}
	s, err := p.Open(ctx, ep, timeout)
	if err != nil {
		p.forget(h)
		return nil, err
	}
	return &Conn{Stream: s, HTTP: h1.NewClientConn(s, p.cfg.HTTP), Fresh: true, pool: p, host: h}, nil
}

func hostOf(ep *cluster.Endpoint) host {
	h := host{addr: ep.Addr, name: ep.Host, hbone: ep.HBONE}
	if ep.HBONE && len(ep.Expect) > 0 {
		h.id = ep.Expect[0]
	}
	return h
}

// restTime is how long a connection can rest and be used without a look.
const restTime = 500 * time.Millisecond

func (c *Conn) usable() bool {
	return !stream.Leaving(c.Stream) && (time.Since(c.rested) < restTime || stream.Alive(c.Stream))
}

func (p *Pool) takeIdle(h host) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	cs := p.hosts[h]
	if cs == nil || len(cs.idle) == 0 {
		return nil
	}
	last := len(cs.idle) - 1
	c := cs.idle[last]
	cs.idle[last] = nil
	cs.idle = cs.idle[:last]
	return c
}

func (p *Pool) admit(h host) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	cs := p.hosts[h]
	if cs == nil {
		cs = new(conns)
		p.hosts[h] = cs
	}
	if p.closed || cs.open >= p.cfg.MaxConns {
		return false
	}
	cs.open++
	return true
}

func (p *Pool) forget(h host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cs := p.hosts[h]
	if cs.open--; cs.open == 0 {
		delete(p.hosts, h)
	}
}

// Put gives a connection back whose last exchange ended in good order.
func (p *Pool) Put(c *Conn) {
	if c.shared != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	cs := p.hosts[c.host]
	if p.closed || len(cs.idle) >= p.cfg.MaxIdle || stream.Leaving(c.Stream) {
		p.mu.Unlock()
		c.Close()
		return
	}
	c.rested = time.Now()
	cs.idle = append(cs.idle, c)
	p.mu.Unlock()
}

// Close ends the connection and takes it out of the pool's count.
func (c *Conn) Close() error {
	c.once.Do(func() {
		_ = c.Stream.Close()
		if c.shared != nil {
			c.pool.rest(c.shared)
			return
		}
		c.pool.forget(c.host)
	})
	return nil
}

// Open opens a connection of the caller's own. timeout 0 is the pool's default.
func (p *Pool) Open(ctx context.Context, ep *cluster.Endpoint, timeout time.Duration) (stream.Stream, error) {
	if timeout == 0 {
		timeout = p.cfg.ConnectTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs, err := p.addresses(ctx, ep)
	if err != nil {
		return nil, err
	}
	var st stream.Stream
	for _, addr := range addrs {
		if st, err = p.open(ctx, ep, addr); err == nil || ctx.Err() != nil {
			break
		}
	}
	return st, err
}

// maxAddresses is how many addresses of one host are tried.
const maxAddresses = 3

// addresses returns where the endpoint may be, in the order of trying.
func (p *Pool) addresses(ctx context.Context, ep *cluster.Endpoint) ([]netip.AddrPort, error) {
	if ep.Host == "" {
		return []netip.AddrPort{ep.Addr}, nil
	}
	found, err := p.cfg.Lookup(ctx, ep.Host)
	if err != nil || len(found) == 0 {
		return nil, reason.New(reason.NoHealthyUpstream, "look up", ep.Host, err)
	}
	out := make([]netip.AddrPort, 0, maxAddresses)
	for _, a := range found[:min(len(found), maxAddresses)] {
		out = append(out, netip.AddrPortFrom(a.Unmap(), ep.Addr.Port()))
	}
	return out, nil
}

func (p *Pool) open(ctx context.Context, ep *cluster.Endpoint, addr netip.AddrPort) (stream.Stream, error) {
	if !ep.HBONE {
		c, err := p.cfg.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		return stream.FromTCP(c), nil
	}
	peer := hbone.Peer{
		Source:  p.cfg.Self,
		Expect:  ep.Expect,
		Addr:    netip.AddrPortFrom(addr.Addr(), mesh.PortHBONE),
		LocalIP: p.cfg.LocalIP,
	}
	s, _, err := p.cfg.Tunnels.Open(ctx, peer, hbone.Request{Authority: addr.String()})
	if err != nil {
		return nil, err
	}
	return stream.FromTunnel(s), nil
}

// Run closes connections that have been idle for too long, until ctx ends; then
// it closes all idle ones.
func (p *Pool) Run(ctx context.Context) error {
	tick := time.NewTicker(p.cfg.IdleTimeout / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.reap(time.Time{}, true)
			return nil
		case now := <-tick.C:
			p.reap(now.Add(-p.cfg.IdleTimeout), false)
		}
	}
}

// reap closes the connections that rest since before then, or all.
func (p *Pool) reap(then time.Time, all bool) {
	p.mu.Lock()
	p.closed = p.closed || all
	var old []*Conn
	resting := p.restingLocked(then, all)
	for _, cs := range p.hosts {
		n := 0
		for n < len(cs.idle) && (all || cs.idle[n].rested.Before(then)) {
			n++
		}
		old = append(old, cs.idle[:n]...)
		cs.idle = append([]*Conn(nil), cs.idle[n:]...)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
	for _, m := range resting {
		p.drop(m)
	}
}

// Yield closes the idle connections whose tunnels are Leaving. Those that carry a
// request end with it.
func (p *Pool) Yield() {
	p.mu.Lock()
	var over []*Conn
	resting := slices.DeleteFunc(p.restingLocked(time.Time{}, true), func(m *multi) bool { return !m.conn.Leaving() })
	for _, cs := range p.hosts {
		cs.idle = slices.DeleteFunc(cs.idle, func(c *Conn) bool {
			leaving := stream.Leaving(c.Stream)
			if leaving {
				over = append(over, c)
			}
			return leaving
		})
	}
	p.mu.Unlock()
	for _, c := range over {
		c.Close()
	}
	for _, m := range resting {
		p.drop(m)
	}
}

// HostInfo describes the connections to one endpoint, for people.
type HostInfo struct {
	Address string `json:"address"`
	HBONE   bool   `json:"hbone"`
	Open    int    `json:"open"`
	Idle    int    `json:"idle"`
}

// Snapshot lists the connections.
func (p *Pool) Snapshot() []HostInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []HostInfo
	for h, cs := range p.hosts {
		idle := len(cs.idle)
		for _, m := range cs.multi {
			if m.conn.InFlight() == 0 {
				idle++
			}
		}
		out = append(out, HostInfo{h.String(), h.hbone, cs.open, idle})
	}
	return out
}
