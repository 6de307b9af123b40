package route

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Arrival is a CONNECT that came in for a local pod.
type Arrival struct {
	Local     *mesh.Workload // the pod's workload
	Accepted  netip.Addr     // the pod's address that the tunnel was accepted on
	Authority string         // of the CONNECT
	Network   mesh.Network   // the network that this node is in
	Loopback  bool           // application tunnels with PROXY are reached on loopback
	SOCKS     bool           // the port of the SOCKS server is ztunnel's own too
	Trace     *Trace         // if not nil, it is told each step of the decision
}

// Delivery is where an Arrival goes inside its pod.
type Delivery struct {
	// Dial is the application's address. Policies see Policy instead.
	Dial netip.AddrPort

	// Policy is what authorization policies compare: the address that the tunnel
	// was accepted on and the port that the application really listens on.
	Policy netip.AddrPort

	// Service is the one that the authority names, nil for a plain address.
	Service *mesh.Service

	// Proxy asks for a PROXY header, with Original as its destination.
	Proxy    bool
	Original netip.AddrPort
}

// Deliver validates a CONNECT and decides where it goes (protocols §1.7).
// StatusOf gives the status of a refusal.
func Deliver(v View, a Arrival) (Delivery, error) {
	d, err := deliverTo(v, a)
	if t := a.Trace; t != nil {
		if err != nil {
			t.note("delivery", a.Authority, fmt.Sprintf("refused with status %d: %v", StatusOf(err), err))
		} else {
			t.note("delivery", a.Authority, d.String())
		}
	}
	return d, err
}

func deliverTo(v View, a Arrival) (Delivery, error) {
	if dst, err := netip.ParseAddrPort(a.Authority); err == nil && dst.Port() != 0 {
		return a.deliverAddress(v, netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
	}
	host, number, err := net.SplitHostPort(a.Authority)
	if err != nil {
		return Delivery{}, reason.New(reason.BadRequest, "parse authority", strconv.Quote(a.Authority), err)
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil || port == 0 || !validHost(host) {
		return Delivery{}, reason.Newf(reason.BadRequest, "parse authority", strconv.Quote(a.Authority), "want address:port or hostname:port")
	}
	return a.deliverHost(v, host, uint16(port))
}

// String describes the delivery for people.
func (d Delivery) String() string {
	s := "to " + d.Dial.String()
	if d.Policy != d.Dial {
		s += ", policy sees " + d.Policy.String()
	}
	if d.Proxy {
		s += ", PROXY header for " + d.Original.String()
	}
	return s
}

func (a Arrival) deliverAddress(v View, dst netip.AddrPort) (Delivery, error) {
	var why string
	switch {
	case dst.Addr() == a.Accepted:
		why = "the address that the tunnel was accepted on"
	case a.Local.AppTunnel != nil:
		why = "any address will do: the workload has an application tunnel"
	case a.isWaypointOf(v, dst.Addr()):
		why = "this workload is its waypoint"
	default:
		return Delivery{}, reason.Newf(reason.AddressMismatch, "deliver", a.Authority, "the tunnel was accepted on %s", a.Accepted)
	}
	if a.Trace != nil {
		a.Trace.note("authority", dst.Addr().String(), why)
	}
	return a.deliver(dst, dst.Port(), nil)
}

func (a Arrival) deliverHost(v View, host string, port uint16) (Delivery, error) {
	svc := a.serviceOf(v, host)
	if svc == nil {
		return Delivery{}, reason.Newf(reason.UnknownDestination, "deliver", a.Authority, "no service has that hostname")
	}
	target := targetPort(a.Local, svc, port)
	if a.Trace != nil {
		a.Trace.add(Step{What: "authority", Subject: host, Service: svc,
			Result: fmt.Sprintf("%s, whose port %d is %d here", serviceText(svc), port, target)})
	}
	if target == 0 && (a.Local.AppTunnel == nil || a.Local.AppTunnel.Port == 0) {
		return Delivery{}, reason.Newf(reason.NoHealthyUpstream, "deliver", a.Authority, "the service has no such port")
	}
	var original netip.AddrPort
	if a.wantsProxy() {
		vip, ok := preferredVIP(svc, a.Network)
		if !ok {
			return Delivery{}, reason.Newf(reason.NoHealthyUpstream, "deliver", a.Authority, "the service has no address for a PROXY header")
		}
		original = netip.AddrPortFrom(vip, port)
	}
	return a.deliver(original, target, svc)
}

// deliver applies the pod's application tunnel and keeps the mesh's own ports
// out of reach. original is what a PROXY header would tell.
func (a Arrival) deliver(original netip.AddrPort, port uint16, svc *mesh.Service) (Delivery, error) {
	if t := a.Local.AppTunnel; t != nil && t.Port != 0 {
		port = t.Port
		if a.Trace != nil {
			a.Trace.note("port", portText(port), "of the application tunnel")
		}
	}
	if ownPort(port, a.SOCKS) {
		return Delivery{}, reason.New(reason.SelfCall, "deliver", a.Authority, nil)
	}
	d := Delivery{Dial: netip.AddrPortFrom(a.Accepted, port), Service: svc}
	d.Policy = d.Dial
	if !a.wantsProxy() {
		return d, nil
	}
	d.Proxy, d.Original = true, original
	if a.Loopback {
		d.Dial = netip.AddrPortFrom(loopback(a.Accepted), port)
	}
	return d, nil
}

func (a Arrival) wantsProxy() bool {
	return a.Local.AppTunnel != nil && a.Local.AppTunnel.Protocol == mesh.AppTunnelPROXY
}

// isWaypointOf reports whether the local workload is the waypoint of whatever has
// that address. Only the plain waypoint counts, not the weighted ones.
func (a Arrival) isWaypointOf(v View, dst netip.Addr) bool {
	addr := mesh.NetAddr{Network: a.Network, Addr: dst}
	var gw *mesh.Gateway
	if w := v.WorkloadByAddr(addr); w != nil {
		gw = w.Waypoint
	} else if svc := v.ServiceByVIP(addr, a.Local.Namespace); svc != nil {
		gw = svc.Waypoint
	}
	if gw == nil {
		return false
	}
	svc, w := resolve(v, *gw, a.Local.Namespace)
	if w != nil {
		return w.UID == a.Local.UID
	}
	if svc == nil {
		return false
	}
	_, member := a.Local.Member(svc.Key())
	return member
}

// serviceOf finds the service with that hostname, the local namespace's first,
// then the canonical one.
func (a Arrival) serviceOf(v View, host string) *mesh.Service {
	var best *mesh.Service
	for _, svc := range v.ServicesByHost(host) {
		switch {
		case svc.NamespaceOnly && svc.Namespace != a.Local.Namespace:
		case svc.Namespace == a.Local.Namespace:
			return svc
		case best == nil, svc.Canonical && !best.Canonical:
			best = svc
		}
	}
	return best
}

func targetPort(w *mesh.Workload, svc *mesh.Service, port uint16) uint16 {
	if m, ok := w.Member(svc.Key()); ok {
		for _, p := range m.Ports {
			if p.Service == port && p.Target != 0 {
				return p.Target
			}
		}
	}
	p, _ := svc.Port(port)
	return p.Target
}

// preferredVIP picks the address of svc to tell: the own network's first, IPv4 first.
func preferredVIP(svc *mesh.Service, network mesh.Network) (netip.Addr, bool) {
	best, bestRank := netip.Addr{}, -1
	for _, vip := range svc.VIPs {
		rank := 0
		if vip.Network == network {
			rank += 2
		}
		if vip.Addr.Is4() {
			rank++
		}
		if rank > bestRank {
			best, bestRank = vip.Addr, rank
		}
	}
	return best, bestRank >= 0
}

func loopback(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// validHost reports whether s can be a DNS name (RFC 1123, and the '*' and '_'
// that service names use).
func validHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '*':
		default:
			return false
		}
	}
	return true
}

// StatusOf maps a refusal to the HTTP status that answers the CONNECT: 400 for a
// request that cannot be meant for this pod, 401 for one that policy denies and
// 503 for everything else (protocols §1.3).
func StatusOf(err error) int {
	switch reason.Of(err) {
	case reason.None:
		return http.StatusOK
	case reason.BadRequest, reason.AddressMismatch:
		return http.StatusBadRequest
	case reason.DeniedByPolicy, reason.DeniedByDefault, reason.DeniedPolicyAbsent, reason.PolicyChanged:
		return http.StatusUnauthorized
	}
	return http.StatusServiceUnavailable
}
