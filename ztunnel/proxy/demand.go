package proxy

import (
	"context"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// Decisions are made of what is known. Where the control plane tells everything
// (the default) that is the node's Mesh. Where it is asked on demand, a decision
// that missed something waits until that has been asked for, and is made again:
//
//	route.Choose(view) ── view.Missing: {network/10.96.0.7} ──▶ Demand.Known ──┐
//	        ▲                                                                  │
//	        └──────────────────────────────────────────────────────────────────┘

// choose is route.Choose on what is known or can be learnt.
func (p *Pod) choose(ctx context.Context, flow route.Flow) (r route.Route, err error) {
	if p.node.Demand == nil {
		return route.Choose(p.node.Mesh, flow)
	}
	unknown := p.decide(ctx, flow.Dst.String(), func(v workloads.View) { r, err = route.Choose(v, flow) })
	if unknown != nil {
		return route.Route{}, unknown
	}
	return r, err
}

// deliverTo is route.Deliver on what is known or can be learnt.
func (p *Pod) deliverTo(ctx context.Context, a route.Arrival) (d route.Delivery, err error) {
	if p.node.Demand == nil {
		return route.Deliver(p.node.Mesh, a)
	}
	unknown := p.decide(ctx, a.Authority, func(v workloads.View) { d, err = route.Deliver(v, a) })
	if unknown != nil {
		return route.Delivery{}, unknown
	}
	return d, err
}

// decide calls f until it has missed nothing. What is not known is not guessed:
// an address may stand for a service that has a waypoint or a policy.
func (p *Pod) decide(ctx context.Context, subject string, f func(workloads.View)) error {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	for {
		v := p.node.Demand.View()
		f(v)
		missing := v.Missing()
		if missing == nil {
			return nil
		}
		if err := p.node.Demand.Known(ctx, missing); err != nil {
			return reason.Newf(reason.UnknownDestination, "learn", subject,
				"the control plane has not answered about %s: %w", strings.Join(missing, ", "), err)
		}
	}
}
