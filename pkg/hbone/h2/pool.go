package h2

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// maxTries is how often one opener sends a request that the peer refuses, and how
// many connections it waits for that take no streams.
const maxTries = 5

// maxSpread is how many connections to one peer queueing delay alone may open.
const maxSpread = 4

// Pool keeps tunnels to peers and opens streams on them. It implements
// hbone.Opener. Make one per workload, with NewPool: workloads never share
// connections.
type Pool struct {
	cfg    PoolConfig
	ctx    context.Context // of the dials; ends with Close
	cancel context.CancelFunc

	mu       sync.Mutex
	entries  map[key]*entry
	over     map[*conn]struct{} // made by OpenOver
	draining bool
	changed  chan struct{} // closed and replaced when a connection has gone
	live     int           // connections and dials
}

// key is what streams on one connection have in common. All of it is compared.
type key struct {
	source mesh.Identity
	expect string // the identities in their order, one per line
	addr   netip.AddrPort
	local  netip.Addr
}

func keyOf(p hbone.Peer) key {
	var b strings.Builder
	for _, id := range p.Expect {
		b.WriteString(id.String())
		b.WriteByte('\n')
	}
	return key{p.Source, b.String(), p.Addr, p.LocalIP}
}

// entry holds the connections of one key.
type entry struct {
	peer  hbone.Peer
	share *hbone.Budget // of the peer
	conns []*conn
	dial  *dial // under way; nil if none
}

// dial is an attempt to connect that any number of openers wait for.
type dial struct {
	done  chan struct{}
	began time.Time
	c     *conn         // valid once done is closed
	err   error         // valid once done is closed
	tcp   time.Duration // the same: of the TCP connect
	tls   time.Duration // and of the rest
}

// failure returns why the dial, or the connection that it made, has failed.
func (d *dial) failure() error {
	if d.err != nil {
		return d.err
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if errors.Is(d.c.err, errFinished) {
		return nil
	}
	return d.c.err
}

// leaving reports whether the connection takes no more streams.
func (c *conn) leaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away
}

// NewPool returns an empty pool. It works at once; Run ends it with its context.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 100
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 5 * time.Minute
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Pool{cfg: cfg, ctx: ctx, cancel: cancel, entries: make(map[key]*entry), changed: make(chan struct{})}
}

// Run waits for ctx to end and closes the pool.
func (p *Pool) Run(ctx context.Context) error {
	<-ctx.Done()
	return p.Close()
}

// Open implements hbone.Opener. A request that was not answered, because the peer
// did not process it, or its connection broke or stands still, is sent again on
// another connection, a few times at most: none of the caller's bytes have been
// sent before the answer.
func (p *Pool) Open(ctx context.Context, to hbone.Peer, req hbone.Request) (hbone.Stream, *hbone.Response, error) {
	s, resp, err := p.openOnce(ctx, to, req)
	for again := 1; again < maxTries && elsewhere(err, req) && ctx.Err() == nil; again++ {
		s, resp, err = p.openOnce(ctx, to, req)
	}
	if err != nil {
		return nil, resp, err
	}
	return s, resp, nil
}

// elsewhere reports whether another connection may do what one did not.
func elsewhere(err error, req hbone.Request) bool {
	return refused(err) || errors.Is(err, errLost) || errors.Is(err, errSilent) && !req.Impatient
}

// refused reports whether the peer has said that it did not process a request: by
// GOAWAY, or because it came before we knew how many streams the peer takes.
func refused(err error) bool {
	reset, ok := errors.AsType[*hbone.ResetError](err)
	return errors.Is(err, errRefused) || ok && reset.Remote && reset.Code == hbone.RefusedStream
}

func (p *Pool) openOnce(ctx context.Context, to hbone.Peer, req hbone.Request) (*stream, *hbone.Response, error) {
	c, err := p.conn(ctx, to, req)
	if err != nil {
		return nil, nil, err
	}
	if t := req.Timing; t != nil {
		defer func(sent time.Time) { t.Connect = time.Since(sent) }(time.Now())
	}
	return c.open(ctx, req)
}

// conn returns a connection on which a slot is reserved for the caller.
func (p *Pool) conn(ctx context.Context, to hbone.Peer, req hbone.Request) (*conn, error) {
	k := keyOf(to)
	var told hbone.Timing
	defer func() {
		if t := req.Timing; t != nil {
			t.Dial, t.TLS, t.Reused = told.Dial, told.TLS, told.Dial == 0
		}
	}()
	for away := 0; ; {
		c, d, err := p.pick(k, to)
		if c != nil || err != nil {
			return c, err
		}
		late, stop := d.lateFor(req)
		select {
		case <-late:
			return nil, reason.Newf(reason.Unresponsive, "open tunnel", to.Addr.String(), "%w in %v", hbone.ErrNoConnection, suspectAfter)
		case <-d.done:
			stop()
			told = hbone.Timing{Dial: d.tcp, TLS: d.tls}
			if err := d.failure(); err != nil {
				return nil, err
			}
			if d.c.leaving() {
				away++
			}
			if away == maxTries {
				return nil, reason.Newf(reason.Draining, "open tunnel", to.Addr.String(), "the peer sent %d connections in a row away", away)
			}
		case <-ctx.Done():
			stop()
			return nil, giveUp(ctx, to.Addr.String())
		}
	}
}

// lateFor returns a channel that tells an impatient opener when the dial has taken
// too long, and what ends it.
func (d *dial) lateFor(req hbone.Request) (<-chan time.Time, func()) {
	if !req.Impatient {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(d.began.Add(suspectAfter)))
	return t.C, func() { t.Stop() }
}

// pick reserves a slot on a connection, or returns the dial to wait for. It
// dials ahead when the connection that it found is crowded.
func (p *Pool) pick(k key, to hbone.Peer) (*conn, *dial, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return nil, nil, reason.New(reason.Draining, "open tunnel", to.Addr.String(), nil)
	}
	e := p.entries[k]
	if e == nil {
		to.Expect = slices.Clone(to.Expect)
		e = &entry{peer: to, share: p.cfg.Budget.Share()}
		p.entries[k] = e
	}
	c, more := e.choose(p.cfg.MaxStreams)
	if (c == nil || more) && e.dial == nil {
		e.dial = &dial{done: make(chan struct{}), began: time.Now()}
		p.live++
		go p.connect(k, e, e.dial)
	}
	return c, e.dial, nil
}

// choose reserves a slot: on the first connection that is neither slow nor full,
// else on any with room. more says that another connection is worth having.
func (e *entry) choose(limit int) (c *conn, more bool) {
	crowded := true
	var second *conn
	for _, c := range e.conns {
		full, slow := c.crowded(limit)
		if !slow && c.reserveSlot(limit) {
			return c, full && e.allCrowded(limit)
		}
		if slow && second == nil {
			second = c
		}
		crowded = crowded && (full || len(e.conns) < maxSpread)
	}
	if second != nil && second.reserveSlot(limit) {
		return second, crowded
	}
	for _, c := range e.conns {
		if c.reserveSlot(limit) {
			return c, crowded
		}
	}
	return nil, true
}

func (e *entry) allCrowded(limit int) bool {
	for _, c := range e.conns {
		if full, _ := c.crowded(limit); !full {
			return false
		}
	}
	return true
}

// connect makes one connection and serves it to its end.
func (p *Pool) connect(k key, e *entry, d *dial) {
	c, err := p.handshake(e, d)
	if err != nil && p.cfg.ConnError != nil {
		p.cfg.ConnError(e.peer, err)
	}
	p.mu.Lock()
	e.dial = nil
	if err == nil && p.ctx.Err() != nil {
		_ = c.t.Close()
		err = reason.New(reason.Draining, "open tunnel", e.peer.Addr.String(), nil)
	}
	d.err = err
	if err != nil {
		p.gone(k, e)
		p.mu.Unlock()
		close(d.done)
		return
	}
	c.onClose = func(err error) { p.remove(k, e, c) }
	if leaving := p.cfg.ConnLeaving; leaving != nil {
		c.onLeaving = func() { leaving(e.peer) }
	}
	d.c = c
	c.greet(0)
	e.conns = append(e.conns, c)
	if p.draining {
		c.drain()
	}
	p.mu.Unlock()
	c.recheck(p.cfg.Recheck)
	c.startPings()
	if p.cfg.ConnOpened != nil {
		p.cfg.ConnOpened(e.peer)
	}
	close(d.done)
	p.serve(k, e, c)
}

// serve reads a connection until it ends.
func (p *Pool) serve(k key, e *entry, c *conn) {
	defer c.expire().Stop()
	err := c.run()
	if err != nil {
		p.cfg.Log.Debug("tunnel ended", "peer", e.peer.Addr, "error", err)
	}
	if p.cfg.ConnClosed != nil {
		p.cfg.ConnClosed(e.peer, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone(k, e)
}

// gone notes that a connection or a dial has ended. p.mu is held.
func (p *Pool) gone(k key, e *entry) {
	p.live--
	if len(e.conns) == 0 && e.dial == nil && p.entries[k] == e {
		delete(p.entries, k)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// remove takes a connection that is of no more use out of the pool.
func (p *Pool) remove(k key, e *entry, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.conns = slices.DeleteFunc(e.conns, func(o *conn) bool { return o == c })
	if len(e.conns) == 0 && e.dial == nil && p.entries[k] == e {
		delete(p.entries, k)
	}
}

// handshake dials a peer and does the TLS handshake.
func (p *Pool) handshake(e *entry, d *dial) (*conn, error) {
	to := e.peer
	raw, err := p.dialTCP(to)
	d.tcp = max(time.Since(d.began), 1)
	if err != nil {
		return nil, err
	}
	defer func() { d.tls = time.Since(d.began) - d.tcp }()
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	defer cancel()
	cfg, err := p.cfg.TLS(ctx, to)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	tc, err := tlsconn.Client(ctx, raw, cfg)
	if err != nil {
		return nil, tlsError("open tunnel", to.Addr.String(), err)
	}
	c := newConn(tc, true, p.cfg.Settings, e.share, p.cfg.Log)
	c.socket = socket(raw)
	c.idleFor = p.cfg.IdleTimeout
	c.peer = tc.ConnectionState().PeerCertificates
	return c, nil
}

// dialTCP connects. A connect that takes too long is most often a NetworkPolicy
// that drops HBONE, and says so.
func (p *Pool) dialTCP(to hbone.Peer) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ConnectTimeout)
	defer cancel()
	raw, err := p.cfg.Dial(ctx, to.Addr)
	if err == nil {
		return raw, nil
	}
	return nil, dialError(ctx, to.Addr, err)
}

// Drain lets open streams finish, opens no more, and returns when the last
// connection has closed or ctx has ended, then with ctx's cause.
func (p *Pool) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.draining = true
	for _, e := range p.entries {
		for _, c := range e.conns {
			c.drain()
		}
	}
	for p.live > 0 {
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// Close ends every stream and connection at once. It may be called again.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.draining = true
	p.cancel()
	var conns []*conn
	for _, e := range p.entries {
		conns = append(conns, e.conns...)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.hangUp(reason.New(reason.TunnelClosed, "close tunnel", c.t.RemoteAddr().String(), nil))
	}
	return nil
}

// Snapshot describes the pool's connections.
func (p *Pool) Snapshot() []ConnInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []ConnInfo
	for _, e := range p.entries {
		for _, c := range e.conns {
			list = append(list, c.info(e.peer))
		}
	}
	return list
}

func (c *conn) info(peer hbone.Peer) ConnInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := ConnInfo{Peer: peer, Local: c.t.LocalAddr(), Opened: c.opened, Streams: len(c.streams), Total: c.total, RTT: c.roundTrip(), State: "open"}
	if c.away {
		i.State = "draining"
	}
	return i
}
