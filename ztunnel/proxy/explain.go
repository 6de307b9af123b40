package proxy

import (
	"context"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// What follows answers questions about connections that are only imagined, for
// package why, by what serves real ones.

// Self returns the workload that a connection of the pod would be made as at this
// moment; nil when it would have to wait for it.
func (p *Pod) Self() *mesh.Workload {
	if w := p.known(); w != nil || !p.own.IsZero() || !p.node.away() {
		return w
	}
	w, _ := p.provisional() // nil without a certificate
	return w
}

// Choose is route.Choose on what is known or can be learnt. A trace sees one
// decision, the last one.
func (p *Pod) Choose(ctx context.Context, flow route.Flow) (route.Route, error) {
	flow.Suspect = p.node.suspects.at(time.Now())
	if p.node.Demand != nil && flow.Trace != nil {
		untold := flow
		untold.Trace = nil
		_, _ = p.choose(ctx, untold) // learns what is missing
	}
	return p.choose(ctx, flow)
}

// Deliver is route.Deliver on what is known or can be learnt.
func (p *Pod) Deliver(ctx context.Context, a route.Arrival) (route.Delivery, error) {
	if p.node.Demand != nil && a.Trace != nil {
		untold := a
		untold.Trace = nil
		_, _ = p.deliverTo(ctx, untold) // learns what is missing
	}
	return p.deliverTo(ctx, a)
}

// Explain is what the pod's policies say about a connection. Its verdict is the one
// that a connection would get that does not wait for a policy.
func (p *Pod) Explain(self *mesh.Workload, c authz.Connection) authz.Explanation {
	policies, missing := p.node.Mesh.PoliciesFor(self)
	if self == p.standIn.Load() {
		policies = append(policies[:len(policies):len(policies)], p.perhaps(self)...)
	}
	e := authz.Explain(policies, missing, c)
	e.Verdict = p.evaluate(self, c)
	for i := range e.Policies {
		e.Policies[i].Decides = e.Policies[i].Decides && e.Policies[i].Policy.Name == e.Policy
	}
	return e
}
