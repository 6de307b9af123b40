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
		return pick{}, false
	}
	b := balancer{flow: f, svc: svc, port: port, fallback: declared.Target}
	endpoints := v.Endpoints(svc.Key())
	best, total, count := -1, uint64(0), 0
	for i := range endpoints {
		rank, _ := b.rank(&endpoints[i])
		if rank < 0 || rank < best {
			continue
		}
		if rank > best {
			best, total, count = rank, 0, 0
		}
		if weight := uint64(endpoints[i].Workload.Capacity); weight > 0 {
			total += weight
			count++
		}
	}
	if total == 0 {
		return pick{}, false
	}
	n := f.Rand(total)
	for i := range endpoints {
		rank, target := b.rank(&endpoints[i])
		if rank != best {
			continue
		}
		w := endpoints[i].Workload
		if n < uint64(w.Capacity) {
			return pick{w, target, count > 1}, true
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

// rank says how much an endpoint is preferred, -1 for not at all, and on which
// port it serves.
func (b *balancer) rank(e *workloads.Endpoint) (int, uint16) {
	w := e.Workload
	port := b.target(e)
	if port == 0 || !b.reachable(w) || slices.Contains(b.flow.Avoid, w.UID) {
		return -1, 0
	}
	lb := b.svc.LoadBalancing
	if lb == nil {
		if w.Status != mesh.Healthy {
			return -1, 0
		}
		return 0, port
	}
	if w.Status != mesh.Healthy && !lb.AllowAll {
		return -1, 0
	}
	return nearness(lb, b.flow, w), port
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
