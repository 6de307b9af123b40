package why

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// maxWays bounds how many places an answer lists.
const maxWays = 16

// leave is about a connection that a pod opens.
func (n *Node) leave(ctx context.Context, q Question) Answer {
	a, p, dst := n.begin(), q.Pod, q.Dst
	self := a.self(p, q.Waypoint)
	if self == nil {
		a.refuse(reason.Newf(reason.UnknownSource, "serve", "", "%s.%s (%s)", p.ServiceAccount, p.Namespace, p.Name))
		a.change("the control plane has to know the pod: look at culvert status")
		return a.Answer
	}
	if a.closed {
		a.refuse(reason.New(reason.ConnectRefused, "connect", dst.String(), nil))
		a.change("the listeners in pod %s have to open: look at culvert status", p)
		return a.Answer
	}
	choose := a.chooser(ctx, q.Waypoint)
	flow := route.Flow{Source: self, Client: clientOf(self, dst), Dst: dst, Network: n.Network, Rand: first, Trace: new(route.Trace)}
	r, err := choose(flow)
	a.traced(flow.Trace.Steps)
	if err != nil {
		a.refuse(err)
		a.unreachable(flow, err)
		return a.Answer
	}
	if r.Kind.Tunnelled() && a.unproved(self.Identity()) {
		return a.Answer
	}
	a.Allowed = true
	for _, w := range ways(choose, flow, r) {
		a.Ways = append(a.Ways, a.way(flow, w))
	}
	return a.Answer
}

// chooser is route.Choose on some view.
type chooser func(route.Flow) (route.Route, error)

// chooser returns what decides about the pod's connections: its proxy, and for a
// pod that has none the cluster, which knows of no waypoints and tunnels.
func (a *answer) chooser(ctx context.Context, waypoint bool) chooser {
	switch {
	case waypoint:
		return func(f route.Flow) (route.Route, error) { return route.Choose(a.node.Mesh, f) }
	case a.proxy == nil:
		return func(f route.Flow) (route.Route, error) { return route.Choose(plain{a.node.Mesh}, f) }
	}
	return func(f route.Flow) (route.Route, error) { return a.proxy.Choose(ctx, f) }
}

func (a *answer) refuse(err error) {
	a.Allowed, a.Reason, a.Error = false, string(reason.Of(err)), err.Error()
}

// clientOf is the address that the pod calls from.
func clientOf(w *mesh.Workload, dst netip.AddrPort) netip.AddrPort {
	for _, ip := range w.Addresses {
		if ip.Is4() == dst.Addr().Is4() {
			return netip.AddrPortFrom(ip, 0)
		}
	}
	return netip.AddrPort{}
}

// first is chance that always takes the first.
func first(uint64) uint64 { return 0 }

// chosen is one way with its share.
type chosen struct {
	route.Route
	share float64
}

// ways lists everything that chance could have made of a flow: each waypoint of a
// weighted service, and each endpoint that was as good as the one chosen.
func ways(choose chooser, f route.Flow, r route.Route) []chosen {
	if weights := waypointWeights(r.Service); len(weights) > 1 {
		return byWaypoint(choose, f, weights)
	}
	return byEndpoint(choose, f, r, 1)
}

func waypointWeights(svc *mesh.Service) (weights []uint64) {
	if svc == nil {
		return nil
	}
	for i := range svc.WeightedWaypoints {
		weights = append(weights, uint64(svc.WeightedWaypoints[i].Weight))
	}
	return weights
}

// byWaypoint lets chance pick each waypoint in turn: the first number that Choose
// draws for a service with several is the place on the sum of their weights.
func byWaypoint(choose chooser, f route.Flow, weights []uint64) (all []chosen) {
	var before, total uint64
	for _, w := range weights {
		total += w
	}
	for _, w := range weights {
		if w == 0 {
			continue
		}
		at, drawn := before, false
		before += w
		g := f
		g.Trace = new(route.Trace)
		g.Rand = func(uint64) uint64 {
			if drawn {
				return 0
			}
			drawn = true
			return at
		}
		if r, err := choose(g); err == nil {
			all = append(all, byEndpoint(choose, g, r, float64(w)/float64(total))...)
		}
	}
	return all
}

// byEndpoint has Choose decide again for each candidate of the same rank, with
// all others ruled out.
func byEndpoint(choose chooser, f route.Flow, r route.Route, share float64) []chosen {
	equals := equalCandidates(f.Trace.Steps)
	if len(equals) < 2 || len(equals) > maxWays || f.Avoid != nil {
		return []chosen{{r, share}}
	}
	var total float64
	for _, c := range equals {
		total += float64(c.Weight)
	}
	var all []chosen
	for _, c := range equals {
		g := f
		g.Trace = nil
		g.Avoid = nil
		for _, o := range equals {
			if o.Workload.UID != c.Workload.UID {
				g.Avoid = append(g.Avoid, o.Workload.UID)
			}
		}
		if r, err := choose(g); err == nil {
			all = append(all, chosen{r, share * float64(c.Weight) / total})
		}
	}
	return all
}

// equalCandidates returns the candidates that could be chosen, of the step that
// chose: those of the highest rank.
func equalCandidates(steps []route.Step) (equals []route.Candidate) {
	for _, s := range slices.Backward(steps) {
		best := -1
		for _, c := range s.Candidates {
			if c.Excluded == "" {
				best = max(best, c.Rank)
			}
		}
		for _, c := range s.Candidates {
			if c.Excluded == "" && c.Rank == best {
				equals = append(equals, c)
			}
		}
		if len(equals) > 0 {
			return equals
		}
	}
	return nil
}

func (a *answer) way(f route.Flow, c chosen) Way {
	w := Way{Share: c.share, Kind: c.Kind.String(), Next: c.Next, Hostname: c.Hostname, Source: f.Client.Addr(), Waypoint: c.Waypoint, Workload: describe(c.Workload), Text: c.String()}
	if c.Service != nil {
		w.Service = c.Service.Key().String()
	}
	if c.Kind.Tunnelled() {
		w.Authority, w.Identity = c.Authority(), f.Source.Identity().String()
		for _, id := range c.Expect {
			w.Expect = append(w.Expect, id.String())
		}
	}
	return w
}

// unreachable says what keeps a connection from being sent on its way.
func (a *answer) unreachable(f route.Flow, err error) {
	for _, s := range f.Trace.Steps {
		switch s.What {
		case "port":
			if s.Service != nil {
				a.change("service %s would have to declare port %d; it declares %s", s.Service.Key(), f.Dst.Port(), names(ports(s.Service), "none"))
			}
		case "endpoints":
			a.noEndpoint(s)
		}
	}
	switch reason.Of(err) {
	case reason.SelfCall:
		a.change("the port belongs to the mesh itself; the application has to listen on another")
	case reason.NoWaypoint:
		a.change("a ready pod of the waypoint; without one, traffic that was meant for it is never sent around it")
	case reason.NoGateway:
		a.change("a network gateway for the other network that the control plane knows, and a service to call rather than a pod's address")
	}
}

func (a *answer) noEndpoint(s route.Step) {
	if slices.ContainsFunc(s.Candidates, func(c route.Candidate) bool { return c.Chosen }) {
		return
	}
	if len(s.Candidates) == 0 && s.Service != nil {
		a.change("service %s has no endpoints: a pod that its selector matches", s.Service.Key())
	}
	for _, c := range s.Candidates {
		a.change("%s/%s would be used if it were not for: %s", c.Workload.Namespace, c.Workload.Name, c.Excluded)
	}
}

func ports(svc *mesh.Service) (list []string) {
	for _, p := range svc.Ports {
		list = append(list, fmt.Sprint(p.Service))
	}
	return list
}

// plain is the mesh as a pod outside it finds it: virtual addresses lead to
// endpoints, without waypoints and without tunnels.
type plain struct{ workloads.View }

func (p plain) ServiceByVIP(addr mesh.NetAddr, ns string) *mesh.Service {
	return unmeshed(p.View.ServiceByVIP(addr, ns))
}

func unmeshed(svc *mesh.Service) *mesh.Service {
	if svc == nil {
		return nil
	}
	c := *svc
	c.Waypoint, c.WeightedWaypoints, c.SubjectAltNames = nil, nil, nil
	return &c
}

func (p plain) WorkloadByAddr(addr mesh.NetAddr) *mesh.Workload {
	return untunnelled(p.View.WorkloadByAddr(addr))
}

func untunnelled(w *mesh.Workload) *mesh.Workload {
	if w == nil {
		return nil
	}
	c := *w
	c.Waypoint, c.Protocol = nil, mesh.TCP
	return &c
}

func (p plain) Endpoints(name mesh.ServiceName) []workloads.Endpoint {
	list := slices.Clone(p.View.Endpoints(name))
	for i := range list {
		list[i].Workload = untunnelled(list[i].Workload)
	}
	return list
}
