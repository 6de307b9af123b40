package proxy

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// record is what becomes of one connection: one access-log line and one set of
// counters. It belongs to the connection's goroutine; bytes may be read by anyone.
type record struct {
	pod   *Pod
	node  *Node
	start time.Time
	line  accesslog.Connection
	flow  metrics.Flow
	bytes relay.Counters // as the pump counts them; see request and response
	conn  *metrics.Conn  // nil until opened
	plain bool           // inbound without a tunnel

	// For the flight recorder, should it fail.
	dialled netip.AddrPort // before it was decided where that is
	hop     hop
	reached stage
	marks   [stages - 1]time.Duration // when each stage was over
	timing  hbone.Timing              // of opening a tunnel
}

func (p *Pod) begin(dir direction) *record {
	r := &record{pod: p, node: p.node, start: time.Now()}
	r.line.Direction = accesslog.Inbound
	r.flow.Reporter = metrics.Destination
	if dir == outbound {
		r.line.Direction = accesslog.Outbound
		r.flow.Reporter = metrics.Source
	}
	r.node.Metrics.SocketOpened(r.flow.Reporter)
	return r
}

// source sets the local workload of an outbound connection; nil when unknown.
func (r *record) source(w *mesh.Workload) {
	r.flow.Source = w
	at := r.line.Source.Addr
	r.line.Source = party(w)
	r.line.Source.Addr = at
	r.dialled = r.line.Destination.Addr
	if w != nil {
		r.reach(stageChoose)
	}
}

// chose sets where an outbound connection goes. When another endpoint is tried
// it is called again; the connection is counted for the first.
func (r *record) chose(source *mesh.Workload, to route.Route) {
	dst := party(to.Workload)
	dst.Addr = to.Next
	r.line.HBONEAddr = ""
	r.flow.Destination, r.flow.Service = to.Workload, to.Service
	if to.Kind.Tunnelled() {
		r.line.HBONEAddr = to.Authority()
		r.line.Source.Identity = source.Identity()
		dst.Identity = to.Expect[0]
		r.flow.MutualTLS = true
		r.flow.SourceIdentity, r.flow.DestinationIdentity = r.line.Source.Identity, dst.Identity
	}
	r.line.Destination = dst
	if to.Service != nil {
		r.line.Service = to.Service.Hostname
	}
	r.hop = hopOf(to)
	if r.conn == nil {
		r.reach(stageOpen)
		if to.Kind != route.DoubleTunnel { // see answered
			r.opened()
		}
	}
}

func hopOf(to route.Route) hop {
	switch {
	case to.Waypoint:
		return hopWaypoint
	case to.Kind == route.Passthrough:
		return hopOutside
	case to.Kind == route.Direct:
		return hopDirect
	case to.Kind == route.Tunnel:
		return hopWorkload
	}
	return hopGateway
}

// reach notes that the stages before s are over. It costs a look at the clock.
func (r *record) reach(s stage) {
	r.reached = s
	r.marks[s-1] = time.Since(r.start)
}

// answered sets who was reached through a network gateway; nil when it has not said.
// Only now is it known which series such a connection counts for.
func (r *record) answered(w *mesh.Workload, id mesh.Identity) {
	at := r.line.Destination.Addr
	if r.flow.Destination = w; w != nil {
		r.line.Destination = party(w)
	}
	r.line.Destination.Addr, r.line.Destination.Identity = at, id
	r.flow.DestinationIdentity = id
	if r.conn == nil {
		r.opened()
	}
}

// arrived sets both ends of an inbound connection. peer is the TLS identity.
func (r *record) arrived(source, self *mesh.Workload, svc *mesh.Service, peer mesh.Identity, dst netip.AddrPort) {
	at := r.line.Source.Addr
	r.line.Source = party(source)
	r.line.Source.Addr, r.line.Source.Identity = at, peer
	r.line.Destination = party(self)
	r.line.Destination.Addr = dst
	if svc != nil {
		r.line.Service = svc.Hostname
	}
	r.flow.Source, r.flow.Destination, r.flow.Service = source, self, svc
	r.flow.SourceIdentity = peer
	if r.flow.MutualTLS = !peer.IsZero(); r.flow.MutualTLS {
		r.flow.DestinationIdentity = self.Identity()
		r.line.Destination.Identity = self.Identity()
	}
	r.dialled, r.hop = dst, hopApplication
	r.reach(stageChoose)
}

// plaintext says that bytes are counted from the client's side.
func (r *record) plaintext() { r.plain = true }

// opened counts the connection as open; it will be counted as closed by end.
func (r *record) opened() {
	request, response := r.counters()
	r.conn = r.node.Metrics.Series(r.flow).Open(request, response)
	r.node.Access.Opened(&r.line)
}

// counters returns which of the pump's counts are the client's bytes and which
// the server's. A pump counts toward its stream, and an inbound tunnel's stream
// leads back to the client.
func (r *record) counters() (request, response *atomic.Uint64) {
	if r.line.Direction == accesslog.Outbound || r.plain {
		return &r.bytes.Sent, &r.bytes.Received
	}
	return &r.bytes.Received, &r.bytes.Sent
}

// end writes what became of the connection. Sent and received are seen from this
// proxy's workload: requests out and responses in for a client, the other way
// around for a server.
func (r *record) end(err error) {
	r.node.Metrics.SocketClosed(r.flow.Reporter)
	request, response := r.counters()
	r.line.BytesSent, r.line.BytesRecv = response.Load(), request.Load()
	if r.line.Direction == accesslog.Outbound {
		r.line.BytesSent, r.line.BytesRecv = r.line.BytesRecv, r.line.BytesSent
	}
	r.line.Duration = time.Since(r.start)
	r.line.Err = err
	if err != nil && r.line.Source.Addr.IsValid() {
		r.node.Observed.failed(r.flow.Reporter, reason.Of(err))
		r.node.flights.add(r.pod.info, r.failure(r.pod.info, err))
	}
	if r.conn != nil {
		r.conn.Close(err)
		r.node.Access.Complete(&r.line)
		return
	}
	if err == nil || !r.line.Source.Addr.IsValid() {
		return // a client that left before saying anything
	}
	r.node.Metrics.Series(r.flow).Failed(reason.Of(err))
	r.node.Access.Failed(&r.line)
}

// party describes a workload; nil is nobody known.
func party(w *mesh.Workload) accesslog.Party {
	if w == nil {
		return accesslog.Party{}
	}
	name := w.Name
	if name == "" {
		name = w.WorkloadName
	}
	return accesslog.Party{Workload: name, Namespace: w.Namespace, Cluster: w.Cluster}
}
