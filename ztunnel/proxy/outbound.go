package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/pkg/warm"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

const (
	// attempts bounds how many endpoints of a service one connection tries.
	attempts = 3
	// attemptTime is how long an endpoint may take while there are others to try.
	attemptTime = 4 * time.Second
	// slow is how long an endpoint may take before others are preferred to it.
	slow = time.Second
)

func (p *Pod) acceptOutbound(context.Context) error {
	return p.accept(p.outbound, p.serveOutbound)
}

// accept runs serve for every connection until the listener ends.
func (p *Pod) accept(l *listener, serve func(*net.TCPConn)) error {
	l.refused = func(remote netip.AddrPort, cause error) { p.refuse(l, remote, cause) }
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
//
// Everything but relay happens on a warm goroutine: a connection that is only open
// keeps a small stack.
func (p *Pod) serveOutbound(client *net.TCPConn) {
	p.carry(&outflow{pod: p, client: client})
}

func (p *Pod) carry(f *outflow) {
	warm.Do(f.open)
	if f.err == nil {
		f.err = f.server.move(f.live.ctx, f.client, &f.rec.bytes)
	}
	warm.Do(f.end)
}

// outflow is one outbound connection.
type outflow struct {
	pod    *Pod
	client *net.TCPConn
	asked  netip.AddrPort // where to, if the client has said; else the kernel knows
	server far
	live   *live
	rec    *record
	err    error
}

func (f *outflow) open() {
	f.pod.tune(f.client)
	f.rec = f.pod.begin(outbound)
	f.live = f.pod.conns.track(f.pod.ends, outbound)
	f.server, f.err = f.pod.reach(f)
	if f.asked.IsValid() {
		f.err = errors.Join(f.err, answerSOCKS(f.client, socksCode(f.err)))
	}
}

func (f *outflow) end() {
	defer f.live.untrack()
	f.server.close()
	if f.err != nil {
		abort(f.client)
	} else {
		f.client.Close()
	}
	f.rec.end(f.err)
}

// reach is capture, choose and open.
func (p *Pod) reach(f *outflow) (far, error) {
	live, rec := f.live, f.rec
	flow, err := p.capture(f)
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
func (p *Pod) capture(f *outflow) (route.Flow, error) {
	rec := f.rec
	flow := route.Flow{
		Client:  addrPort(f.client.RemoteAddr()),
		SOCKS:   p.socksPort != nil,
		Network: p.node.Settings.Network,
		Rand:    rand.Uint64N,
		Suspect: p.node.suspects.at(time.Now()),
	}
	rec.line.Source.Addr = flow.Client
	dst, err := f.dialled()
	if err != nil {
		return flow, reason.New(reason.Internal, "capture", flow.Client.String(), err)
	}
	flow.Dst = dst
	rec.line.Destination.Addr = dst
	flow.Source, err = p.workload(p.ends)
	rec.source(flow.Source)
	return flow, err
}

// dialled returns the address that the client meant.
func (f *outflow) dialled() (netip.AddrPort, error) {
	if f.asked.IsValid() {
		return f.asked, nil
	}
	return netns.OriginalDst(f.client)
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
	p.node.retries.earn()
	for attempt := 1; ; attempt++ {
		rec.chose(flow.Source, r)
		f, err := p.attempt(ctx, flow, r, rec, attempt < attempts && r.Balanced && p.node.retries.left(time.Now()))
		if err == nil || attempt == attempts || !r.Balanced || !elsewhere(ctx, err) {
			return f, err
		}
		// Who was not asked yet is not asked twice: whatever waited for one dial may go.
		if !errors.Is(err, hbone.ErrNoConnection) && !p.node.retries.spend(time.Now()) {
			return f, err
		}
		flow.Avoid = append(slices.Clip(flow.Avoid), r.Picked.UID)
		next, nextErr := p.choose(ctx, *flow)
		switch {
		case nextErr != nil && reason.Of(err) == reason.Unresponsive: // nobody else: it may come back
			return p.attempt(ctx, flow, r, rec, false)
		case nextErr != nil:
			return f, err
		}
		p.node.Log.Debug("trying another endpoint", "pod", p.info, "failed", r.Next, "next", next.Next, "error", err)
		r = next
	}
}

// attempt tries one endpoint, for a shorter time when there are others. One that
// fails, or takes long, is suspect to the connections that follow.
func (p *Pod) attempt(ctx context.Context, flow *route.Flow, r route.Route, rec *record, others bool) (far, error) {
	if !r.Balanced {
		return p.openOne(ctx, flow, r, rec, false)
	}
	doubt := time.AfterFunc(slow, func() { p.node.suspects.add(r.Picked, time.Now()) })
	defer doubt.Stop()
	mine := ctx
	if others {
		var cancel context.CancelFunc
		mine, cancel = context.WithTimeout(ctx, attemptTime)
		defer cancel()
	}
	f, err := p.openOne(mine, flow, r, rec, others)
	switch {
	case err == nil:
		p.node.suspects.clear(r.Picked)
	case elsewhere(ctx, err):
		p.node.suspects.add(r.Picked, time.Now())
	}
	return f, err
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
	switch reason.Of(err) {
	case reason.NoCertificate, reason.Overloaded: // ours, not the endpoint's
		return false
	}
	return true
}

func (p *Pod) openOne(ctx context.Context, flow *route.Flow, r route.Route, rec *record, others bool) (far, error) {
	if r.Hostname != "" {
		if err := p.resolve(ctx, flow, &r); err != nil {
			return far{}, err
		}
	}
	if !r.Kind.Tunnelled() {
		conn, err := p.dial(ctx, r.Next, netip.Addr{}, reason.ConnectTimeout)
		return far{to: r.Next, conn: conn}, err
	}
	peer := hbone.Peer{
		Source:  flow.Source.Identity(),
		Expect:  r.Expect,
		Addr:    r.Next,
		LocalIP: flow.Client.Addr(),
	}
	request := p.request(flow, r)
	request.Timing, request.Impatient = &rec.timing, others
	if r.Kind == route.DoubleTunnel {
		stream, peer, who, err := p.openDouble(ctx, peer, r, request)
		if err == nil {
			rec.answered(peer, who)
		}
		return far{to: r.Next, stream: stream}, err
	}
	stream, _, err := p.pool.Open(ctx, peer, request)
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
	p.node.Lookups.Lookup(flow.Source, r.Hostname)
	ips, err := p.node.Resolver.LookupNetIP(ctx, "ip", r.Hostname)
	if err != nil {
		return reason.New(reason.NoHealthyUpstream, "resolve", r.Hostname, err)
	}
	same := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() == flow.Dst.Addr().Is4() {
			same = append(same, ip)
		}
	}
	if len(same) == 0 {
		return reason.Newf(reason.NoHealthyUpstream, "resolve", r.Hostname, "no address of the family of %s", flow.Dst)
	}
	ip := same[rand.IntN(len(same))]
	if !r.Target.Addr().IsValid() && r.Host == "" {
		r.Target = netip.AddrPortFrom(ip, r.Target.Port())
	}
	r.Next = netip.AddrPortFrom(ip, r.Next.Port())
	return nil
}
