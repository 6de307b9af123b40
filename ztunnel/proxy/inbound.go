package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/warm"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

func (p *Pod) acceptInbound(context.Context) error {
	return p.accept(p.inbound, p.serveTunnel)
}

// serveTunnel hands a connection to the HTTP/2 server, which makes the TLS
// handshake and calls serveInbound for every CONNECT. Why a tunnel ends does not
// matter: each of its streams has told.
func (p *Pod) serveTunnel(c *net.TCPConn) {
	p.tune(c)
	p.server.ServeConn(c)
}

// refusedTunnel logs a connection to 15008 that never became a tunnel.
func (p *Pod) refusedTunnel(remote netip.AddrPort, err error) {
	rec := p.begin(inbound)
	rec.hop = hopTunnel
	p.node.Observed.acceptFailed(remote, err)
	rec.line.Source.Addr = remote
	rec.line.Destination = party(p.node.Mesh.WorkloadByInfo(p.info, p.node.Settings.NodeName))
	rec.end(err)
}

// serveInbound carries one tunnelled connection to the program that it is for:
//
//	validate   is it for this pod, and on which port (route.Deliver)
//	authorize  may this identity connect (authz.Allowed)
//	connect    to the program, from the client's own address
//	answer     200, and only now
//	relay      move bytes until both directions are done
//	record     one access-log line, one set of counters
//
// Everything but relay happens on a warm goroutine, as in serveOutbound.
func (p *Pod) serveInbound(ctx context.Context, in *hbone.Incoming) {
	f := &inflow{pod: p, ctx: ctx, in: in}
	warm.Do(f.open)
	if f.err == nil {
		f.err = f.stream.Pump(f.live.ctx, f.app, &f.rec.bytes)
	}
	warm.Do(f.end)
}

// inflow is one connection that came through a tunnel.
type inflow struct {
	pod    *Pod
	ctx    context.Context
	in     *hbone.Incoming
	app    *net.TCPConn
	stream hbone.Stream
	live   *live
	rec    *record
	err    error
}

func (f *inflow) open() {
	f.rec = f.pod.begin(inbound)
	f.live = f.pod.conns.track(f.pod.ends, inbound)
	f.app, f.stream, f.err = f.pod.admit(f.ctx, f.in, f.live, f.rec)
}

func (f *inflow) end() {
	defer f.live.untrack()
	if f.stream != nil {
		f.stream.Close()
	}
	if f.app != nil {
		f.app.Close()
	}
	f.rec.end(f.err)
}

// admit is everything up to the answer.
func (p *Pod) admit(ctx context.Context, in *hbone.Incoming, live *live, rec *record) (*net.TCPConn, hbone.Stream, error) {
	self, app, err := p.deliver(ctx, in, live, rec)
	if err != nil {
		in.Reject(route.StatusOf(err))
		return nil, nil, err
	}
	stream, err := in.Accept(p.response(self))
	if err != nil {
		abort(app)
	}
	return app, stream, err
}

// deliver is everything before the answer: it connects to the program, or says
// why not.
func (p *Pod) deliver(ctx context.Context, in *hbone.Incoming, live *live, rec *record) (*mesh.Workload, *net.TCPConn, error) {
	rec.line.Source = accesslog.Party{Addr: in.Remote, Identity: in.Peer}
	rec.line.HBONEAddr = in.Request.Authority
	self, err := p.workload(ctx)
	if err != nil {
		return nil, nil, err
	}
	to, err := p.validate(ctx, self, in)
	if err != nil {
		rec.line.Destination = party(self)
		return nil, nil, err
	}
	p.describe(rec, self, in, to)
	live.tell(in.Remote, in.Local, to.Dial, "HBONE")
	client := authz.Connection{Source: in.Remote.Addr(), Identity: in.Peer, Destination: to.Policy, Network: p.node.Settings.Network}
	if err := p.authorize(ctx, self, live, client); err != nil {
		return nil, nil, err
	}
	rec.reach(stageOpen)
	to.Dial = p.inside(self, to.Dial)
	app, err := p.connect(ctx, to, in)
	if err != nil {
		return nil, nil, err
	}
	rec.reach(stageRelay)
	if err := live.err(); err != nil { // denied meanwhile
		app.Close()
		return nil, nil, err
	}
	return self, app, nil
}

func (p *Pod) validate(ctx context.Context, self *mesh.Workload, in *hbone.Incoming) (route.Delivery, error) {
	return p.deliverTo(ctx, route.Arrival{
		Local:     self,
		Accepted:  in.Local.Addr(),
		Authority: in.Request.Authority,
		Network:   p.node.Settings.Network,
		Loopback:  p.node.Settings.AppLoopback,
		SOCKS:     p.socksPort != nil,
	})
}

// describe fills in who talks to whom. The source is found by its address,
// unless it comes from another network, where addresses mean something else.
func (p *Pod) describe(rec *record, self *mesh.Workload, in *hbone.Incoming, to route.Delivery) {
	s := p.node.Settings
	var source *mesh.Workload
	if n := in.Request.Header.Network; n == "" || strings.EqualFold(n, string(s.Network)) {
		source = p.node.Mesh.WorkloadByAddr(mesh.NetAddr{Network: s.Network, Addr: in.Remote.Addr()})
	}
	if source == nil {
		source = p.node.sources.of(told{in.Request.Header.Baggage, in.Peer})
	}
	svc := to.Service
	if svc == nil {
		host := hbone.ParseForwarded(in.Request.Header.Forwarded).Host
		svc = calledService(p.node.Mesh, self, host, to.Policy.Port())
	}
	rec.arrived(source, self, svc, in.Peer, to.Policy)
	rec.opened()
}

// sources are the clients that are known only by what their proxies say about
// them. They are kept, so that the connections of one client share one value.
type sources struct {
	mu    sync.Mutex
	known map[told]*mesh.Workload
}

// told is what a proxy says about a client, and the identity that it proved.
type told struct {
	baggage string
	id      mesh.Identity
}

// maxSources bounds what clients can make us remember.
const maxSources = 4096

// of returns a workload for telemetry only; nil when nothing is told.
func (s *sources) of(t told) *mesh.Workload {
	if t.baggage == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.known[t]; w != nil {
		return w
	}
	if s.known == nil || len(s.known) >= maxSources {
		s.known = make(map[told]*mesh.Workload)
	}
	b := hbone.ParseBaggage(t.baggage)
	w := &mesh.Workload{
		Namespace:         b.Namespace,
		WorkloadName:      b.WorkloadName,
		CanonicalName:     b.Service,
		CanonicalRevision: b.Revision,
		Cluster:           mesh.Cluster(b.Cluster),
		Locality:          mesh.Locality{Region: b.Region, Zone: b.Zone},
		TrustDomain:       t.id.TrustDomain,
		ServiceAccount:    t.id.ServiceAccount,
	}
	s.known[t] = w
	return w
}

// calledService guesses for telemetry which of the pod's services the client
// called: the one it says, else one that is served on the port.
func calledService(v workloads.View, self *mesh.Workload, host string, port uint16) *mesh.Service {
	var guess *mesh.Service
	for _, m := range self.Services {
		if host != "" && m.Service.Hostname == host {
			return v.Service(m.Service)
		}
		for _, mapped := range m.Ports {
			if guess == nil && mapped.Target == port {
				guess = v.Service(m.Service)
			}
		}
	}
	return guess
}

// connect dials the program, and writes the PROXY header if it wants one.
func (p *Pod) connect(ctx context.Context, to route.Delivery, in *hbone.Incoming) (*net.TCPConn, error) {
	origin := p.originOf(in.Remote.Addr(), to.Dial.Addr())
	if to.Dial.Addr().IsLoopback() {
		origin = netip.Addr{}
	}
	app, err := p.dial(ctx, to.Dial, origin, reason.ConnectTimeout)
	if err != nil || !to.Proxy {
		return app, err
	}
	if _, err := app.Write(proxyHeader(in.Remote, to.Original, in.Peer)); err != nil {
		app.Close()
		return nil, reason.New(reason.ConnectFailed, "write PROXY header", to.Dial.String(), err)
	}
	return app, nil
}

func (p *Pod) response(self *mesh.Workload) hbone.Response {
	r := hbone.Response{Status: http.StatusOK}
	if p.node.Settings.Baggage {
		r.Baggage = p.baggage(self)
	}
	return r
}
