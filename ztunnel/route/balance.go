package route

import (
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// pick is the endpoint that balance chose.
type pick struct {
	workload *mesh.Workload
	port     uint16 // on the workload
	choice   bool   // there were others
}

// balance picks an endpoint of svc for its port: of those that can serve it the
// best ranked, among these by chance, weighted by capacity. waypoint is set when
// the service is a waypoint and port is its tunnel port.
func balance(v View, f Flow, svc *mesh.Service, port uint16, waypoint bool) (pick, bool) {
	declared, known := svc.Port(port)
	if !known && !waypoint {
		if f.Trace != nil {
			f.Trace.add(Step{What: "port", Subject: portText(port) + " of " + serviceText(svc), Result: "not declared", Service: svc})
		}
		return pick{}, false
	}
	b := balancer{flow: f, svc: svc, port: port, fallback: declared.Target}
	endpoints := v.Endpoints(svc.Key())
	best, total, usable := -1, uint64(0), 0
	for i := range endpoints {
		e := b.judge(&endpoints[i])
		weight := uint64(endpoints[i].Workload.Capacity)
		if e.rank >= 0 && weight > 0 {
			usable++
		}
		if e.rank < 0 || e.rank < best {
			continue
		}
		if e.rank > best {
			best, total = e.rank, 0
		}
		total += weight
	}
	if total == 0 {
		if f.Trace != nil {
			f.Trace.endpoints(&b, endpoints, nil, 0)
		}
		return pick{}, false
	}
	n := f.Rand(total)
	for i := range endpoints {
		e := b.judge(&endpoints[i])
		if e.rank != best {
			continue
		}
		w := endpoints[i].Workload
		if n < uint64(w.Capacity) {
			if f.Trace != nil {
				f.Trace.endpoints(&b, endpoints, w, e.port)
			}
			return pick{w, e.port, usable > 1}, true
		}
		n -= uint64(w.Capacity)
	}
	return pick{}, false
}

type balancer struct {
	flow     Flow
	svc      *mesh.Service
	port     uint16
	fallback uint16 // the service's own target port
}

// judgement is what an endpoint is worth to a flow.
type judgement struct {
	rank int    // how much it is preferred; -1 for not at all
	port uint16 // that it serves on
	why  string // of -1
}

// trusted is what an endpoint that is not suspect ranks above one that is. No
// service states as many preferences.
const trusted = 1 << 8

func (b *balancer) judge(e *workloads.Endpoint) judgement {
	w, port := e.Workload, b.target(e)
	lb := b.svc.LoadBalancing
	switch {
	case port == 0:
		return judgement{-1, 0, "it does not serve the port"}
	case !b.reachable(w):
		return judgement{-1, 0, "it has no address, no hostname and no network gateway"}
	case slices.Contains(b.flow.Avoid, w.UID):
		return judgement{-1, 0, "this connection has tried it"}
	case w.Status != mesh.Healthy && (lb == nil || !lb.AllowAll):
		return judgement{-1, 0, "it is not healthy"}
	}
	rank := 0
	if lb != nil {
		if rank = nearness(lb, b.flow, w); rank < 0 {
			return judgement{-1, 0, "it is not as near as the service demands"}
		}
	}
	if b.flow.Suspect == nil || !b.flow.Suspect(w) {
		rank += trusted
	}
	return judgement{rank, port, ""}
}

// target maps the service's port: the endpoint's own mapping first, then the
// service's; a workload with an application tunnel takes any port.
func (b *balancer) target(e *workloads.Endpoint) uint16 {
	for _, p := range e.Ports {
		if p.Service == b.port {
			return p.Target
		}
	}
	if b.fallback == 0 && e.Workload.AppTunnel != nil {
		return b.port
	}
	return b.fallback
}

func (b *balancer) reachable(w *mesh.Workload) bool {
	return len(w.Addresses) > 0 || w.Hostname != "" ||
		w.NetworkGateway != nil && w.Network != b.flow.Source.Network
}

func mode(svc *mesh.Service) mesh.BalanceMode {
	if svc.LoadBalancing == nil {
		return mesh.BalanceStandard
	}
	return svc.LoadBalancing.Mode
}

// nearness ranks w by how many of the service's preferences it meets, in their
// order and up to the first that it does not. Being in the client's network, when
// asked for first, outweighs all others together, but missing it does not stop
// the count (protocols §6.2).
func nearness(lb *mesh.LoadBalancing, f Flow, w *mesh.Workload) int {
	if lb.Mode != mesh.BalanceFailover && lb.Mode != mesh.BalanceStrict {
		return 0
	}
	rank, prefs := 0, lb.Preferences
	if lb.Mode == mesh.BalanceFailover && len(prefs) > 0 && prefs[0] == mesh.ScopeNetwork {
		if shares(mesh.ScopeNetwork, f.Source, w) {
			rank = len(prefs)
		}
		prefs = prefs[1:]
	}
	for _, scope := range prefs {
		if !shares(scope, f.Source, w) {
			if lb.Mode == mesh.BalanceStrict {
				return -1
			}
			break
		}
		rank++
	}
	return rank
}

func shares(scope mesh.LocalityScope, a, b *mesh.Workload) bool {
	switch scope {
	case mesh.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case mesh.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case mesh.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case mesh.ScopeNode:
		return a.Node == b.Node
	case mesh.ScopeCluster:
		return a.Cluster == b.Cluster
	case mesh.ScopeNetwork:
		return a.Network == b.Network
	}
	return false
}
