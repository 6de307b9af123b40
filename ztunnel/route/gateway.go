package route

import (
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// sampleWaypoint picks one of the service's waypoints by weight. Weights that add
// up to nothing leave the plain one.
func sampleWaypoint(svc *mesh.Service, rand func(uint64) uint64) *mesh.Gateway {
	var total uint64
	for i := range svc.WeightedWaypoints {
		total += uint64(svc.WeightedWaypoints[i].Weight)
	}
	if total == 0 {
		return svc.Waypoint
	}
	n := rand(total)
	for i := range svc.WeightedWaypoints {
		weight := uint64(svc.WeightedWaypoints[i].Weight)
		if n < weight {
			return &svc.WeightedWaypoints[i].Gateway
		}
		n -= weight
	}
	return svc.Waypoint
}

// chooseGateway tunnels to the waypoint gw, keeping what was dialled as the
// target. A waypoint that cannot be reached is an error, never a way around it.
func chooseGateway(v View, f Flow, gw mesh.Gateway, svc *mesh.Service) (Route, error) {
	owner, w := resolve(v, gw, f.Source.Namespace)
	p := pick{workload: w, port: hbonePort(gw)}
	if owner != nil {
		var ok bool
		if p, ok = balance(v, f, owner, p.port, true); !ok {
			return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "no healthy endpoint of %s", gw)
		}
	}
	if p.workload == nil {
		return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "%s is unknown", gw)
	}
	w = p.workload
	if f.Trace != nil {
		f.Trace.gateway("waypoint", gw, w, "use "+workloadText(w))
	}
	if w.Network != f.Source.Network {
		r, err := throughGateway(v, f, svc, owner, p)
		r.Waypoint = err == nil
		return r, err
	}
	ip, ok := address(w, owner, f.Dst.Addr())
	if !ok && w.Hostname == "" {
		return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "%s has no address", w.UID)
	}
	r := Route{
		Kind:     Tunnel,
		Next:     netip.AddrPortFrom(ip, p.port),
		Target:   f.Dst,
		Expect:   expect(w, owner),
		Service:  svc,
		Workload: w,
		Picked:   w,
		Waypoint: true,
		Balanced: p.choice,
	}
	if !ok {
		r.Hostname = w.Hostname
	}
	return r, nil
}

// throughGateway reaches an endpoint or waypoint p in another network: a tunnel
// to that network's gateway, and another one inside it (protocols §1.10). svc is
// the service that was dialled, owner the one that p belongs to; its declared
// identities are all that may answer inside.
func throughGateway(v View, f Flow, svc, owner *mesh.Service, p pick) (Route, error) {
	far := p.workload
	switch {
	case svc == nil:
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(),
			"%s is in network %q and only services are reachable across networks", far.UID, far.Network)
	case far.NetworkGateway == nil:
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(), "network %q", far.Network)
	}
	gw := *far.NetworkGateway
	gwSvc, gwWorkload := resolve(v, gw, f.Source.Namespace)
	g := pick{workload: gwWorkload, port: hbonePort(gw)}
	if gwSvc != nil {
		var ok bool
		if g, ok = balance(v, f, gwSvc, g.port, false); !ok {
			return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(), "no healthy endpoint of %s of network %q", gw, far.Network)
		}
	}
	if g.workload == nil {
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(), "%s of network %q is unknown", gw, far.Network)
	}
	if f.Trace != nil {
		f.Trace.gateway("gateway", gw, g.workload, fmt.Sprintf("to network %q, by %s", far.Network, workloadText(g.workload)))
	}
	want := f.Dst.Addr()
	if gw.ByAddress() {
		want = gw.Address.Addr
	}
	ip, ok := address(g.workload, gwSvc, want)
	if !ok && g.workload.Hostname == "" {
		return Route{}, reason.Newf(reason.NoGateway, "route", f.Dst.String(), "%s of network %q has no address", g.workload.UID, far.Network)
	}
	r := Route{
		Kind:     DoubleTunnel,
		Next:     netip.AddrPortFrom(ip, g.port),
		Target:   netip.AddrPortFrom(netip.Addr{}, f.Dst.Port()),
		Expect:   expect(g.workload, gwSvc),
		Host:     svc.Hostname,
		Service:  svc,
		Workload: g.workload,
		Picked:   far,
		Balanced: p.choice || g.choice,
	}
	if !ok {
		r.Hostname = g.workload.Hostname
	}
	if !p.choice && g.choice {
		r.Picked = g.workload
	}
	if owner != nil {
		r.Inner = appendDeclared(nil, owner)
	}
	if len(r.Inner) == 0 {
		return Route{}, reason.Newf(reason.IdentityMismatch, "route", f.Dst.String(),
			"nobody in network %q may answer: its service declares no identities", far.Network)
	}
	return r, nil
}

// resolve finds what a gateway reference names: a service, or else a workload;
// by address a service's VIP comes first too (protocols §1.10).
func resolve(v View, gw mesh.Gateway, clientNS string) (*mesh.Service, *mesh.Workload) {
	if gw.ByAddress() {
		if svc := v.ServiceByVIP(gw.Address, clientNS); svc != nil {
			return svc, nil
		}
		return nil, v.WorkloadByAddr(gw.Address)
	}
	if svc := v.Service(gw.Service); svc != nil {
		return svc, nil
	}
	return nil, v.WorkloadByHost(gw.Service)
}

func hbonePort(gw mesh.Gateway) uint16 {
	if gw.HBONEPort == 0 {
		return mesh.PortHBONE
	}
	return gw.HBONEPort
}

// fromGateway is isGateway, told to the trace.
func fromGateway(v View, f Flow, gw mesh.Gateway) bool {
	from := isGateway(v, f, gw)
	if from && f.Trace != nil {
		f.Trace.gateway("waypoint", gw, nil, "passed over: the connection comes from it")
	}
	return from
}

// isGateway reports whether the flow comes from the gateway itself, which must
// not be sent back to it. Identity and address both have to be the gateway's:
// a pod that merely shares the service account goes through the waypoint.
func isGateway(v View, f Flow, gw mesh.Gateway) bool {
	svc, w := resolve(v, gw, f.Source.Namespace)
	if w != nil {
		return isWorkload(f, w)
	}
	if svc == nil {
		return false
	}
	for _, e := range v.Endpoints(svc.Key()) {
		if isWorkload(f, e.Workload) {
			return true
		}
	}
	return false
}

func isWorkload(f Flow, w *mesh.Workload) bool {
	if w.ServiceAccount != f.Source.ServiceAccount || w.Namespace != f.Source.Namespace || w.TrustDomain != f.Source.TrustDomain {
		return false
	}
	for _, a := range w.Addresses {
		if a == f.Client.Addr() {
			return true
		}
	}
	return false
}
