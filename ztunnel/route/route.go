// Package route decides, for one connection, where it goes and how. It is pure:
// what it knows comes from a View of the mesh, chance comes in as an argument,
// and the answer is a value. Doing what was decided is package proxy's work.
//
//	program in a pod ──dials──▶ Choose ─┬─ Passthrough  plain TCP, to the address that was dialled
//	                                    ├─ Direct       plain TCP, to a workload outside the mesh
//	                                    ├─ Tunnel       HBONE, to a workload or to its waypoint
//	                                    └─ DoubleTunnel HBONE through another network's gateway
//
//	CONNECT 10.0.0.2:8080 ─────▶ Deliver ── the port and address inside the pod, or an HTTP status
//
// Refusals are *reason.Error, so that the access log names them with the same
// words as everything else. A connection that was meant for a waypoint is never
// sent around it.
//
// Every function is safe for concurrent use if its View is.
package route

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// View is what route reads of the mesh. workloads.View has all of it.
type View interface {
	WorkloadByAddr(mesh.NetAddr) *mesh.Workload
	WorkloadByHost(mesh.ServiceName) *mesh.Workload
	Service(mesh.ServiceName) *mesh.Service
	ServicesByHost(host string) []*mesh.Service
	ServiceByVIP(addr mesh.NetAddr, clientNS string) *mesh.Service
	Endpoints(mesh.ServiceName) []workloads.Endpoint
}

// Kind is how a connection is carried on.
type Kind uint8

const (
	Passthrough  Kind = iota // plain TCP to an address that the mesh does not know
	Direct                   // plain TCP to a known workload
	Tunnel                   // HBONE
	DoubleTunnel             // HBONE in a stream that another network's gateway forwards
)

func (k Kind) String() string {
	return [...]string{"passthrough", "direct", "tunnel", "double tunnel"}[k]
}

// Tunnelled reports whether a connection of kind k is carried by HBONE.
func (k Kind) Tunnelled() bool { return k == Tunnel || k == DoubleTunnel }

// Flow is a connection that a program in a meshed pod has opened.
type Flow struct {
	Source  *mesh.Workload // the pod's workload
	Client  netip.AddrPort // the program's end
	Dst     netip.AddrPort // what the program dialled
	Network mesh.Network   // the network that this node is in

	// Rand returns a random number in [0, n); math/rand/v2.Uint64N is one.
	Rand func(n uint64) uint64

	SOCKS bool // the port of the SOCKS server is ztunnel's own too

	// Avoid lists endpoints that this connection has tried in vain.
	Avoid []mesh.UID

	// Suspect reports whether a workload could not be reached a moment ago: it is
	// chosen only when nothing else is left. Nil suspects none.
	Suspect func(*mesh.Workload) bool

	// Trace, if not nil, is told each step of the decision.
	Trace *Trace
}

// Route is the answer to a Flow.
type Route struct {
	Kind Kind

	// Next is what to dial. Its address is not valid when Hostname is set: then
	// the port is Next's and the address is to be resolved.
	Next     netip.AddrPort
	Hostname string

	// Target is where the connection ends: the authority of the CONNECT for a
	// Tunnel, equal to Next otherwise. Its address is not valid when it is Host
	// or Hostname that the connection is for.
	Target netip.AddrPort

	// Expect are the identities of which the peer must show one; tunnels only.
	Expect []mesh.Identity

	// Host is the service's hostname, the authority of both CONNECTs of a
	// DoubleTunnel, and Inner are the identities of which the far end of the inner
	// tunnel must show one.
	Host  string
	Inner []mesh.Identity

	// Service is the service that was dialled, nil when it was no service.
	Service *mesh.Service

	// Workload is the one at Next: the endpoint, the waypoint or the network
	// gateway. Nil for Passthrough.
	Workload *mesh.Workload

	// Waypoint is set when the connection is for a waypoint, at Next or behind a
	// network gateway.
	Waypoint bool

	// Balanced is set when another than Picked could have been chosen.
	Balanced bool
	Picked   *mesh.Workload
}

// Authority returns the CONNECT authority. For a Host or Hostname it is the name
// with Target's port.
func (r Route) Authority() string {
	if r.Target.Addr().IsValid() {
		return r.Target.String()
	}
	return net.JoinHostPort(cmp.Or(r.Host, r.Hostname), strconv.Itoa(int(r.Target.Port())))
}

// String describes the route for people: "tunnel to 10.0.0.2:15008 …".
func (r Route) String() string {
	s := r.Kind.String() + " to " + r.Next.String()
	if r.Hostname != "" {
		s = fmt.Sprintf("%s to %s port %d", r.Kind, r.Hostname, r.Next.Port())
	}
	if r.Kind.Tunnelled() {
		s += " as " + names(r.Expect) + ", target " + r.Authority()
	}
	if r.Kind == DoubleTunnel {
		s += " as " + names(r.Inner)
	}
	return s
}

func names(ids []mesh.Identity) string {
	all := make([]string, len(ids))
	for i, id := range ids {
		all[i] = id.Principal()
	}
	return strings.Join(all, "|")
}

// Choose decides where a flow goes (protocols §6.2). Its steps, in order:
//
//	refuse      the mesh's own ports
//	waypoint    of the service that was dialled
//	upstream    an endpoint of the service, or the workload with that address
//	passthrough if there is neither
//	gateway     if it is in another network
//	waypoint    of the workload, if it was dialled by its own address
//	direct      by tunnel or plain, as the workload wants it
func Choose(v View, f Flow) (Route, error) {
	r, err := choose(v, f)
	if t := f.Trace; t != nil {
		if err != nil {
			t.note("decision", f.Dst.String(), "refused: "+err.Error())
		} else {
			t.note("decision", f.Dst.String(), r.String())
		}
	}
	return r, err
}

func choose(v View, f Flow) (Route, error) {
	if ownPort(f.Dst.Port(), f.SOCKS) && isSelf(f) {
		return Route{}, reason.New(reason.SelfCall, "route", f.Dst.String(), nil)
	}
	addr := mesh.NetAddr{Network: f.Network, Addr: f.Dst.Addr()}
	svc, w := v.ServiceByVIP(addr, f.Source.Namespace), v.WorkloadByAddr(addr)
	if f.Trace != nil {
		f.Trace.owner(addr, svc, w)
	}
	switch {
	case svc != nil && w == nil:
		return chooseService(v, f, svc)
	case svc != nil:
		return chooseBoth(v, f, svc)
	case w == nil:
		return passthrough(f, nil), nil
	case w.Network != f.Source.Network:
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(),
			"it is in network %q and only services are reachable across networks", w.Network)
	}
	return chooseWorkload(v, f, nil, w, f.Dst.Port(), false)
}

func chooseService(v View, f Flow, svc *mesh.Service) (Route, error) {
	if gw := sampleWaypoint(svc, f.Rand); gw != nil {
		if !fromGateway(v, f, *gw) {
			return chooseGateway(v, f, *gw, svc)
		}
	} else if f.Trace != nil {
		f.Trace.add(Step{What: "waypoint", Subject: "of " + serviceText(svc), Result: "none", Service: svc})
	}
	if mode(svc) == mesh.BalancePassthrough {
		return passthrough(f, svc), nil
	}
	p, ok := balance(v, f, svc, f.Dst.Port(), false)
	if !ok {
		return Route{}, reason.Newf(reason.NoHealthyUpstream, "route", "", "%s", f.Dst)
	}
	if p.workload.Network != f.Source.Network {
		return throughGateway(v, f, svc, svc, p)
	}
	return deliver(f, svc, p.workload, p.port, p.choice)
}

// chooseBoth is for an address that a workload has and a service claims, most
// often with a range. It counts as the workload's: the service's waypoint is not
// asked and having no endpoint is no error. But an endpoint that the service has
// is used (protocols §6.1).
func chooseBoth(v View, f Flow, svc *mesh.Service) (Route, error) {
	if mode(svc) == mesh.BalancePassthrough {
		return passthrough(f, nil), nil
	}
	p, ok := balance(v, f, svc, f.Dst.Port(), false)
	switch {
	case !ok:
		return passthrough(f, nil), nil
	case p.workload.Network != f.Source.Network:
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(),
			"%s is in network %q and only services are reachable across networks", p.workload.UID, p.workload.Network)
	}
	return chooseWorkload(v, f, svc, p.workload, p.port, p.choice)
}

// chooseWorkload reaches a workload that was dialled by its own address, through
// its waypoint if it has one.
func chooseWorkload(v View, f Flow, svc *mesh.Service, w *mesh.Workload, port uint16, choice bool) (Route, error) {
	if w.Waypoint == nil {
		if f.Trace != nil {
			f.Trace.add(Step{What: "waypoint", Subject: "of " + workloadText(w), Result: "none", Workload: w})
		}
	} else if !fromGateway(v, f, *w.Waypoint) {
		return chooseGateway(v, f, *w.Waypoint, nil)
	}
	return deliver(f, svc, w, port, choice)
}

func passthrough(f Flow, svc *mesh.Service) Route {
	return Route{Kind: Passthrough, Next: f.Dst, Target: f.Dst, Service: svc}
}

// deliver reaches w on port, by tunnel if w takes one. svc is the service that w
// was picked for.
func deliver(f Flow, svc *mesh.Service, w *mesh.Workload, port uint16, choice bool) (Route, error) {
	ip, ok := address(w, svc, f.Dst.Addr())
	if !ok && w.Hostname == "" {
		return Route{}, reason.Newf(reason.NoHealthyUpstream, "route", "", "%s: %s has no address", f.Dst, w.UID)
	}
	target := netip.AddrPortFrom(ip, port)
	r := Route{Kind: Direct, Next: target, Target: target, Service: svc, Workload: w, Picked: w, Balanced: choice}
	if !ok {
		r.Hostname = w.Hostname
	}
	if w.Protocol == mesh.HBONE {
		r.Kind = Tunnel
		r.Next = netip.AddrPortFrom(ip, mesh.PortHBONE)
		r.Expect = expect(w, svc)
	}
	return r, nil
}

// address picks which address of w to use: the one that was dialled, else one
// that the service's families allow, of the dialled one's family if there is one.
func address(w *mesh.Workload, svc *mesh.Service, want netip.Addr) (netip.Addr, bool) {
	var other netip.Addr
	for _, a := range w.Addresses {
		switch {
		case a == want:
			return a, true
		case svc != nil && !familyAllowed(svc.IPFamilies, a):
		case !other.IsValid(), a.Is4() == want.Is4() && other.Is4() != want.Is4():
			other = a
		}
	}
	return other, other.IsValid()
}

func familyAllowed(f mesh.IPFamilies, a netip.Addr) bool {
	switch f {
	case mesh.IPv4Only:
		return a.Is4()
	case mesh.IPv6Only:
		return a.Is6()
	}
	return true
}

// expect lists who may answer for w: w itself, and the names that the service it
// was picked for declares. A declared name that is no identity is left out: it
// could never match.
func expect(w *mesh.Workload, svc *mesh.Service) []mesh.Identity {
	if svc == nil || len(svc.SubjectAltNames) == 0 {
		return []mesh.Identity{w.Identity()}
	}
	ids := make([]mesh.Identity, 1, 1+len(svc.SubjectAltNames))
	ids[0] = w.Identity()
	return appendDeclared(ids, svc)
}

// appendDeclared appends the identities that a service declares for itself.
func appendDeclared(ids []mesh.Identity, svc *mesh.Service) []mesh.Identity {
	for _, name := range svc.SubjectAltNames {
		if id, err := mesh.ParseIdentity(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// ownPort reports whether a ztunnel itself listens on port in every pod.
func ownPort(port uint16, socks bool) bool {
	return port == mesh.PortOutbound || port == mesh.PortPlaintext || port == mesh.PortHBONE || socks && port == mesh.PortSOCKS
}

// isSelf reports whether the flow would come back to the ztunnel of its own pod.
func isSelf(f Flow) bool {
	ip := f.Dst.Addr()
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	if f.Dst.Port() == mesh.PortHBONE {
		return false // reaches its own pod by a tunnel, which refuses the port
	}
	for _, a := range f.Source.Addresses {
		if a == ip {
			return true
		}
	}
	return false
}
