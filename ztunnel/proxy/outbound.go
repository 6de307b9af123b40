package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// attempts bounds how many endpoints of a service one connection tries.
const attempts = 3

func (p *Pod) acceptOutbound(context.Context) error {
	return p.accept(p.outbound, p.serveOutbound)
}

// accept runs serve for every connection until the listener ends.
func (p *Pod) accept(l *listener, serve func(*net.TCPConn)) error {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		p.flows.Add(1)
		go p.serveCounted(c, serve)
	}
}

func (p *Pod) serveCounted(c *net.TCPConn, serve func(*net.TCPConn)) {
	defer p.flows.Done()
	serve(c)
}

// serveOutbound carries one connection that a program in the pod dialled to
// where it was going:
//
//	capture  who dialled, and which address they meant
//	choose   where it must go and how (route.Choose)
//	open     plain TCP or a tunnel; another endpoint if the first fails
//	relay    move bytes until both directions are done
//	record   one access-log line, one set of counters
func (p *Pod) serveOutbound(client *net.TCPConn) {
	p.tune(client)
	rec := p.begin(outbound)
	live := p.conns.track(p.ends, outbound)
	defer live.untrack()
	server, err := p.reach(live, client, rec)
	if err == nil {
		err = server.move(live.ctx, client, &rec.bytes)
		server.close()
	}
	if err != nil {
		abort(client)
	} else {
		client.Close()
	}
	rec.end(err)
}

// reach is capture, choose and open. It is apart from relay so that a connection
// that is only open does not hold on to the stack that opening it took.
func (p *Pod) reach(live *live, client *net.TCPConn, rec *record) (far, error) {
	flow, err := p.capture(client, rec)
	if err != nil {
		return far{}, err
	}
	r, err := p.choose(live.ctx, flow)
	if err != nil {
		return far{}, err
	}
	server, err := p.open(live.ctx, &flow, r, rec)
	if err == nil {
		rec.reach(stageRelay)
		live.tell(flow.Client, flow.Dst, server.to, server.protocol())
	}
	return server, err
}

// capture finds out who dialled what.
func (p *Pod) capture(client *net.TCPConn, rec *record) (route.Flow, error) {
	flow := route.Flow{
		Client:  addrPort(client.RemoteAddr()),
		Network: p.node.Settings.Network,
		Rand:    rand.Uint64N,
	}
	rec.line.Source.Addr = flow.Client
	dst, err := netns.OriginalDst(client)
	if err != nil {
		return flow, reason.New(reason.Internal, "capture", flow.Client.String(), err)
	}
	flow.Dst = dst
	rec.line.Destination.Addr = dst
	flow.Source, err = p.workload(p.ends)
	rec.source(flow.Source)
	return flow, err
}

// far is the side of an outbound connection that is away from the pod: a tunnel's
// stream, or a plain socket.
type far struct {
	to     netip.AddrPort
	stream hbone.Stream
	conn   *net.TCPConn
}

func (f far) protocol() string {
	if f.stream != nil {
		return "HBONE"
	}
	return "TCP"
}

// move carries the bytes; each kind does it in its own way.
func (f far) move(ctx context.Context, client *net.TCPConn, n *relay.Counters) error {
	if f.stream != nil {
		return f.stream.Pump(ctx, client, n)
	}
	return relay.Copy(ctx, client, f.conn, n)
}

func (f far) close() {
	if f.stream != nil {
		f.stream.Close()
	}
	if f.conn != nil {
		f.conn.Close()
	}
}

// open reaches what the route names. The client's bytes wait in the kernel
// meanwhile, so while nothing has answered another endpoint of the service can
// be tried in the place of one that failed.
func (p *Pod) open(ctx context.Context, flow *route.Flow, r route.Route, rec *record) (far, error) {
	for attempt := 1; ; attempt++ {
		rec.chose(flow.Source, r)
		f, err := p.openOne(ctx, flow, r, &rec.timing)
		if err == nil || attempt == attempts || !r.Balanced || !elsewhere(ctx, err) {
			return f, err
		}
		flow.Avoid = append(slices.Clip(flow.Avoid), r.Workload.UID)
		next, nextErr := p.choose(ctx, *flow)
		if nextErr != nil {
			return f, err
		}
		p.node.Log.Debug("trying another endpoint", "pod", p.info, "failed", r.Next, "next", next.Next, "error", err)
		r = next
	}
}

// elsewhere reports whether a failure may be particular to the endpoint. What
// policy denies stays denied.
func elsewhere(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return status.Status == http.StatusServiceUnavailable
	}
	return reason.Of(err) != reason.NoCertificate
}

func (p *Pod) openOne(ctx context.Context, flow *route.Flow, r route.Route, took *hbone.Timing) (far, error) {
	if r.Hostname != "" {
		if err := p.resolve(ctx, flow, &r); err != nil {
			return far{}, err
		}
	}
	if !r.Kind.Tunnelled() {
		conn, err := p.dial(ctx, r.Next, netip.Addr{}, reason.ConnectTimeout)
		return far{to: r.Next, conn: conn}, err
	}
	request := p.request(flow, r)
	request.Timing = took
	stream, _, err := p.pool.Open(ctx, hbone.Peer{
		Source:  flow.Source.Identity(),
		Expect:  r.Expect,
		Addr:    r.Next,
		LocalIP: flow.Client.Addr(),
	}, request)
	return far{to: r.Next, stream: stream}, err
}

// request is the CONNECT for a route (protocols §1.2).
func (p *Pod) request(flow *route.Flow, r route.Route) hbone.Request {
	host := ""
	if r.Service != nil {
		host = r.Service.Hostname
	}
	return hbone.Request{
		Authority: r.Authority(),
		Header: hbone.Header{
			Baggage:     p.baggage(flow.Source),
			Forwarded:   hbone.FormatForwarded(flow.Client, host),
			Traceparent: hbone.NewTraceparent(),
		},
	}
}

// resolve fills in the address of a route that names a host, of the dialled
// address's family if there is one.
func (p *Pod) resolve(ctx context.Context, flow *route.Flow, r *route.Route) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	ips, err := p.node.Resolver.LookupNetIP(ctx, "ip", r.Hostname)
	if err != nil {
		return reason.New(reason.NoHealthyUpstream, "resolve", r.Hostname, err)
	}
	var same []netip.Addr
	for i, ip := range ips {
		ips[i] = ip.Unmap()
		if ips[i].Is4() == flow.Dst.Addr().Is4() {
			same = append(same, ips[i])
		}
	}
	if len(same) == 0 {
		return reason.Newf(reason.NoHealthyUpstream, "resolve", r.Hostname, "no address of the family of %s", flow.Dst)
	}
	ip := same[rand.IntN(len(same))]
	r.Next = netip.AddrPortFrom(ip, r.Next.Port())
	r.Target = netip.AddrPortFrom(ip, r.Target.Port())
	return nil
}

// originOf returns the address that a connection to an application is made
// from: the client's, unless that is the application's own.
func (p *Pod) originOf(client, app netip.Addr) netip.Addr {
	if !p.origSrc || client == app || client.Is4() != app.Is4() {
		return netip.Addr{}
	}
	return client
}
