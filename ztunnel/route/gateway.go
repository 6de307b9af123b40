package route

import (
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
	port, choice := hbonePort(gw), false
	if owner != nil {
		p, ok := balance(v, f, owner, port, true)
		if !ok {
			return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "no healthy endpoint of %s", gw)
		}
		w, port, choice = p.workload, p.port, p.choice
	}
	if w == nil {
		return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "%s is unknown", gw)
	}
	if w.Network != f.Source.Network {
		return Route{}, otherNetwork(f, w)
	}
	ip, ok := address(w, owner, f.Dst.Addr())
	if !ok {
		return Route{}, reason.Newf(reason.NoWaypoint, "route", f.Dst.String(), "%s has no address", w.UID)
	}
	return Route{
		Kind:     Tunnel,
		Next:     netip.AddrPortFrom(ip, port),
		Target:   f.Dst,
		Expect:   expect(w, owner),
		Service:  svc,
		Workload: w,
		Waypoint: true,
		Balanced: choice,
	}, nil
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
