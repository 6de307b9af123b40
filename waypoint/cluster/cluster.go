// Package cluster turns a cluster of the configuration into endpoints, out of
// what the mesh knows of workloads and services, and picks one per request.
//
//	config.Cluster ─▶ service's endpoints ─▶ healthy, reachable, serving the port ─▶ balance.Picker
//
// The list of a cluster is computed when it is first needed after a change and
// then shared. Everything is safe for concurrent use.
package cluster

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/balance"
	"github.com/culvert-mesh/culvert/waypoint/config"
)

// Endpoint is where a request can go.
type Endpoint struct {
	Workload *mesh.Workload  // nil for an address that the mesh does not know
	Addr     netip.AddrPort  // of the application; the port alone when there is a Host
	Host     string          // to be looked up at every connection; "" = Addr is all there is to know
	HBONE    bool            // reached by a tunnel to port 15008 of its address
	Expect   []mesh.Identity // any of which the tunnel's other end must have

	weight uint32
	active *atomic.Int64 // shared by the versions of one endpoint
}

// String returns where the endpoint is, host:port or address:port.
func (e *Endpoint) String() string {
	if e.Host != "" {
		return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Addr.Port())))
	}
	return e.Addr.String()
}

// same reports whether both are one place.
func (e *Endpoint) same(o *Endpoint) bool { return e.Addr == o.Addr && e.Host == o.Host }

// Begin and End count a request under way.
func (e *Endpoint) Begin() { e.active.Add(1) }

// End is Begin's counterpart.
func (e *Endpoint) End() { e.active.Add(-1) }

// Active is the number of requests under way.
func (e *Endpoint) Active() int64 { return e.active.Load() }

// Config says where we are.
type Config struct {
	View    workloads.View
	Network mesh.Network
	IPv6    bool // prefer IPv6 addresses of endpoints that have both
}

// Clusters picks endpoints.
type Clusters struct {
	cfg        Config
	generation atomic.Uint64
	lists      sync.Map // key → *list
}

type key struct {
	service mesh.ServiceName
	port    uint16
	policy  config.BalancePolicy
}

// list is a cluster's endpoints at one generation.
type list struct {
	generation uint64
	endpoints  []*Endpoint
	picker     balance.Picker
}

func (l *list) Len() int            { return len(l.endpoints) }
func (l *list) Weight(i int) uint32 { return l.endpoints[i].weight }
func (l *list) Active(i int) int64  { return l.endpoints[i].Active() }

// New returns clusters over a view. Changed must be called when the view changed.
func New(cfg Config) *Clusters { return &Clusters{cfg: cfg} }

// Changed makes every cluster look at the view again at its next use.
func (c *Clusters) Changed(workloads.Change) { c.generation.Add(1) }

// Pick chooses an endpoint, not one of avoid if there is another.
func (c *Clusters) Pick(cl *config.Cluster, avoid ...*Endpoint) (*Endpoint, error) {
	l := c.list(cl)
	for range 2 * len(avoid) {
		if e := l.pick(); e != nil && !among(e, avoid) {
			return e, nil
		}
	}
	for _, e := range l.endpoints {
		if e.weight > 0 && len(avoid) > 0 && !among(e, avoid) {
			return e, nil
		}
	}
	if e := l.pick(); e != nil {
		return e, nil
	}
	return nil, reason.New(reason.NoHealthyUpstream, "choose endpoint", cl.Name, nil)
}

func (l *list) pick() *Endpoint {
	i := l.picker.Pick(rand.Uint64())
	if i < 0 {
		return nil
	}
	return l.endpoints[i]
}

func among(e *Endpoint, list []*Endpoint) bool {
	for _, o := range list {
		if o.same(e) {
			return true
		}
	}
	return false
}

func (c *Clusters) list(cl *config.Cluster) *list {
	k := key{cl.Service, cl.Port, cl.Balance}
	generation := c.generation.Load()
	old, _ := c.lists.Load(k)
	prev, _ := old.(*list)
	if prev != nil && prev.generation == generation {
		return prev
	}
	l := c.build(cl, prev)
	l.generation = generation
	c.lists.Store(k, l)
	return l
}

// build lists the endpoints of the moment. Counters of requests under way go on
// from the previous list.
func (c *Clusters) build(cl *config.Cluster, prev *list) *list {
	svc := c.cfg.View.Service(cl.Service)
	l := new(list)
	for _, ep := range c.cfg.View.Endpoints(cl.Service) {
		if e := c.endpoint(svc, ep, cl.Port); e != nil {
			e.active = counterOf(prev, e)
			l.endpoints = append(l.endpoints, e)
		}
	}
	switch cl.Balance {
	case config.LeastRequest:
		l.picker = balance.NewLeastRequest(l)
	case config.Random:
		l.picker = balance.NewRandom(l)
	default:
		l.picker = balance.NewRoundRobin(l, rand.Uint64())
	}
	return l
}

func counterOf(prev *list, of *Endpoint) *atomic.Int64 {
	if prev != nil {
		for _, e := range prev.endpoints {
			if e.same(of) {
				return e.active
			}
		}
	}
	return new(atomic.Int64)
}

// endpoint returns how to reach one workload of a service, nil when it cannot
// take requests.
func (c *Clusters) endpoint(svc *mesh.Service, ep workloads.Endpoint, port uint16) *Endpoint {
	w := ep.Workload
	all := svc != nil && svc.LoadBalancing != nil && svc.LoadBalancing.AllowAll
	if w.Status != mesh.Healthy && !all || w.Network != c.cfg.Network || w.Capacity == 0 {
		return nil
	}
	target := targetPort(svc, ep, port)
	addr, ok := c.addr(w)
	if !ok && w.Hostname == "" || target == 0 {
		return nil
	}
	e := c.Workload(w, netip.AddrPortFrom(addr, target))
	if !ok {
		e.Host = w.Hostname
	}
	e.weight = w.Capacity
	if svc != nil {
		for _, san := range svc.SubjectAltNames {
			if id, err := mesh.ParseIdentity(san); err == nil {
				e.Expect = append(e.Expect, id)
			}
		}
	}
	return e
}

// Workload returns w itself as an endpoint.
func (c *Clusters) Workload(w *mesh.Workload, addr netip.AddrPort) *Endpoint {
	return &Endpoint{Workload: w, Addr: addr, HBONE: w.Protocol == mesh.HBONE, Expect: []mesh.Identity{w.Identity()},
		weight: 1, active: new(atomic.Int64)}
}

func targetPort(svc *mesh.Service, ep workloads.Endpoint, port uint16) uint16 {
	for _, p := range ep.Ports {
		if p.Service == port {
			return p.Target
		}
	}
	if svc == nil {
		return 0
	}
	p, _ := svc.Port(port)
	return p.Target
}

func (c *Clusters) addr(w *mesh.Workload) (netip.Addr, bool) {
	for _, a := range w.Addresses {
		if a.Is6() == c.cfg.IPv6 {
			return a, true
		}
	}
	if len(w.Addresses) > 0 {
		return w.Addresses[0], true
	}
	return netip.Addr{}, false
}
