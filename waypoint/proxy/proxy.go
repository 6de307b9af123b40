// Package proxy carries what a waypoint was given: http.go one request after
// another of a client's connection, tcp.go a connection as a whole. Each reads
// from top to bottom as the traffic goes:
//
//	http.go     read ▶ filters ▶ route ▶ forward.go: endpoint, connection, send, answer ▶ filters ▶ record.go
//	http2.go    the same for a connection that carries many requests at once
//	retry.go    the same again when the route asks for it
//	mirror.go   copies of requests for somebody else
//	upgrade.go  after a 101: bytes both ways
//	tcp.go      network filters ▶ endpoint ▶ bytes both ways ▶ record.go
//	watch.go    notices a client that leaves while an answer is awaited
//
// Headers: x-request-id is made when the client sent none, and x-forwarded-proto
// is set when it is missing. x-forwarded-for, via and traceparent pass unchanged:
// inside the mesh the client is known by its certificate. Fields for one hop are
// taken out.
//
// A Proxy is safe for concurrent use; each connection is one goroutine, and one
// more while a request's body is on its way up.
package proxy

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/http/h2"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/stream"
	"github.com/culvert-mesh/culvert/waypoint/upstream"
)

// Log takes one line per request and per connection. *accesslog.Logger is one.
type Log interface {
	Request(*accesslog.Request)
	Complete(*accesslog.Connection)
	Failed(*accesslog.Connection)
}

// Config configures a Proxy. All but Requests, TCP and Log is required.
type Config struct {
	Store    *config.Store
	View     workloads.View
	Network  mesh.Network
	Clusters *cluster.Clusters
	Upstream *upstream.Pool
	HTTP     h1.Options

	Requests *metrics.Requests // nil = not counted
	TCP      *metrics.TCP      // nil = not counted
	Log      Log               // nil = not logged
}

// Proxy serves connections.
type Proxy struct {
	cfg      Config
	draining atomic.Bool
	active   atomic.Int64 // requests and TCP connections under way
	mirrors  atomic.Int64 // copies of requests under way

	mu       sync.Mutex
	sessions map[*session]struct{}
	conns    map[*connection]struct{} // TCP, while they relay
	multi    map[*h2.Server]struct{}  // connections of HTTP/2
}

var _ listener.Handler = (*Proxy)(nil)

// New returns a proxy.
func New(cfg Config) *Proxy {
	return &Proxy{cfg: cfg, sessions: make(map[*session]struct{}), conns: make(map[*connection]struct{}), multi: make(map[*h2.Server]struct{})}
}

// Drain makes every response say that its connection ends, and ends the
// connections that rest between two requests.
func (p *Proxy) Drain() {
	p.draining.Store(true)
	p.endIdle()
}

// endIdle wakes the sessions that wait for a request. One that begins to wait at
// this moment is found the next time.
func (p *Proxy) endIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.sessions {
		if s.idle.Load() {
			_ = s.down.SetReadDeadline(stream.Past)
		}
	}
	for m := range p.multi {
		m.Drain()
	}
}

func (p *Proxy) add(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions[s] = struct{}{}
}

func (p *Proxy) remove(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
}

func (p *Proxy) live() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions) + len(p.multi)
}

// Active is the number of requests and TCP connections under way.
func (p *Proxy) Active() int64 { return p.active.Load() }

// Refused implements listener.Handler.
func (p *Proxy) Refused(c *listener.Caller, authority string, err error) {
	if p.cfg.Log == nil {
		return
	}
	p.cfg.Log.Failed(&accesslog.Connection{
		Source:    p.source(c),
		HBONEAddr: authority,
		Direction: accesslog.Inbound,
		Err:       err,
	})
}

// source describes the caller.
func (p *Proxy) source(c *listener.Caller) accesslog.Party {
	party := accesslog.Party{Addr: c.Source, Identity: c.Identity}
	if w := p.workloadAt(c.Source.Addr()); w != nil {
		party.Workload, party.Namespace, party.Cluster = w.Name, w.Namespace, w.Cluster
	}
	return party
}

func (p *Proxy) workloadAt(addr netip.Addr) *mesh.Workload {
	return p.cfg.View.WorkloadByAddr(mesh.NetAddr{Network: p.cfg.Network, Addr: addr.Unmap()})
}

func party(ep *cluster.Endpoint) accesslog.Party {
	if ep == nil {
		return accesslog.Party{}
	}
	out := accesslog.Party{Addr: ep.Addr}
	if w := ep.Workload; w != nil {
		out.Workload, out.Namespace, out.Cluster = w.Name, w.Namespace, w.Cluster
		if ep.HBONE {
			out.Identity = w.Identity()
		}
	}
	return out
}

// endpointOf picks where a connection to d goes when no route says otherwise.
func (p *Proxy) endpointOf(d *config.Destination, snap *config.Snapshot, to netip.AddrPort, avoid []*cluster.Endpoint) (*cluster.Endpoint, *config.Cluster, error) {
	if d.IsWorkload() {
		ep, err := p.workloadEndpoint(d, to)
		return ep, &config.Cluster{Name: d.Name}, err
	}
	cl := snap.Clusters[d.Cluster]
	if cl == nil {
		return nil, nil, errNoCluster(d.Cluster)
	}
	ep, err := p.cfg.Clusters.Pick(cl, avoid...)
	return ep, cl, err
}

// flow describes the traffic for metrics.
func (p *Proxy) flow(c *listener.Caller, d *config.Destination, ep *cluster.Endpoint) metrics.Flow {
	f := metrics.Flow{
		Reporter:       metrics.Waypoint,
		Source:         p.workloadAt(c.Source.Addr()),
		SourceIdentity: c.Identity,
		MutualTLS:      !c.Identity.IsZero(),
	}
	if ep != nil && ep.Workload != nil {
		f.Destination = ep.Workload
		if ep.HBONE {
			f.DestinationIdentity = ep.Workload.Identity()
		}
	}
	if d != nil && !d.IsWorkload() {
		f.Service = p.cfg.View.Service(d.Service)
	}
	return f
}

// lookup returns the destination's present configuration.
func (p *Proxy) lookup(name string) (*config.Snapshot, *config.Destination) {
	snap := p.cfg.Store.Load()
	return snap, snap.Destinations[name]
}

// watchAfter is how long an answer may take before the client is watched.
const watchAfter = 50 * time.Millisecond

// linger is how long a connection that ends early is still read from, so that
// the client gets to read its answer.
const linger = 2 * time.Second

func (p *Proxy) enter() func() {
	p.active.Add(1)
	return p.leave
}

func (p *Proxy) leave() { p.active.Add(-1) }

// Idle waits, after Drain, until every connection has ended or ctx does.
func (p *Proxy) Idle(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.active.Load() > 0 || p.live() > 0 {
		p.endIdle()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}
