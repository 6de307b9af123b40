// Package route decides, for one connection, where it goes and how. It is pure:
// what it knows comes from a View of the mesh, chance comes in as an argument,
// and the answer is a value. Doing what was decided is package proxy's work.
//
//	program in a pod ──dials──▶ Choose ─┬─ Passthrough  plain TCP, to the address that was dialled
//	                                    ├─ Direct       plain TCP, to a workload outside the mesh
//	                                    └─ Tunnel       HBONE, to a workload or to its waypoint
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
	"net"
	"net/netip"
	"strconv"

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
	Passthrough Kind = iota // plain TCP to an address that the mesh does not know
	Direct                  // plain TCP to a known workload
	Tunnel                  // HBONE
)

func (k Kind) String() string { return [...]string{"passthrough", "direct", "tunnel"}[k] }

// Flow is a connection that a program in a meshed pod has opened.
type Flow struct {
	Source  *mesh.Workload // the pod's workload
	Client  netip.AddrPort // the program's end
	Dst     netip.AddrPort // what the program dialled
	Network mesh.Network   // the network that this node is in

	// Rand returns a random number in [0, n); math/rand/v2.Uint64N is one.
	Rand func(n uint64) uint64

	// Avoid lists endpoints that this connection has tried in vain.
	Avoid []mesh.UID
}

// Route is the answer to a Flow.
type Route struct {
	Kind Kind

	// Next is what to dial. Its address is not valid when Hostname is set: then
	// the port is Next's and the address is to be resolved.
	Next     netip.AddrPort
	Hostname string

	// Target is where the connection ends: the authority of the CONNECT for a
	// Tunnel, equal to Next otherwise.
	Target netip.AddrPort

	// Expect are the identities of which the peer must show one; Tunnel only.
	Expect []mesh.Identity

	// Service is the service that was dialled, nil when it was no service.
	Service *mesh.Service

	// Workload is the one at Next: the endpoint or the waypoint. Nil for Passthrough.
	Workload *mesh.Workload

	// Waypoint is set when Workload is a waypoint.
	Waypoint bool

	// Balanced is set when another endpoint could have been chosen.
	Balanced bool
}

// Authority returns the CONNECT authority. For a Hostname it is the name with
// Target's port.
func (r Route) Authority() string {
	if r.Target.Addr().IsValid() {
		return r.Target.String()
	}
	return net.JoinHostPort(r.Hostname, strconv.Itoa(int(r.Target.Port())))
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
	if ownPort(f.Dst.Port()) && isSelf(f) {
		return Route{}, reason.New(reason.SelfCall, "route", f.Dst.String(), nil)
	}
	addr := mesh.NetAddr{Network: f.Network, Addr: f.Dst.Addr()}
	if svc := v.ServiceByVIP(addr, f.Source.Namespace); svc != nil {
		return chooseService(v, f, svc)
	}
	w := v.WorkloadByAddr(addr)
	if w == nil {
		return passthrough(f, nil), nil
	}
	if w.Network != f.Source.Network {
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(),
			"it is in network %q and only services are reachable across networks", w.Network)
	}
	if w.Waypoint != nil && !isGateway(v, f, *w.Waypoint) {
		return chooseGateway(v, f, *w.Waypoint, nil)
	}
	return deliver(f, nil, w, f.Dst.Port(), false)
}

func chooseService(v View, f Flow, svc *mesh.Service) (Route, error) {
	if gw := sampleWaypoint(svc, f.Rand); gw != nil && !isGateway(v, f, *gw) {
		return chooseGateway(v, f, *gw, svc)
	}
	if mode(svc) == mesh.BalancePassthrough {
		return passthrough(f, svc), nil
	}
	p, ok := balance(v, f, svc, f.Dst.Port(), false)
	if !ok {
		return Route{}, reason.Newf(reason.NoHealthyUpstream, "route", "", "%s", f.Dst)
	}
	if p.workload.Network != f.Source.Network {
		return Route{}, otherNetwork(f, p.workload)
	}
	return deliver(f, svc, p.workload, p.port, p.choice)
}

// otherNetwork refuses an endpoint that only a network gateway could reach.
func otherNetwork(f Flow, w *mesh.Workload) error {
	if w.NetworkGateway == nil {
		return reason.Newf(reason.NoGateway, "route", f.Dst.String(), "network %q", w.Network)
	}
	return reason.Newf(reason.Unsupported, "route", f.Dst.String(),
		"tunnel through the gateway %s of network %q", w.NetworkGateway, w.Network)
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
	r := Route{Kind: Direct, Next: target, Target: target, Service: svc, Workload: w, Balanced: choice}
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
	for _, name := range svc.SubjectAltNames {
		if id, err := mesh.ParseIdentity(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// ownPort reports whether a ztunnel itself listens on port in every pod.
func ownPort(port uint16) bool {
	return port == mesh.PortOutbound || port == mesh.PortPlaintext || port == mesh.PortHBONE
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
