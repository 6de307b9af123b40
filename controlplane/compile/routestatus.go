package compile

import (
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// route judges a route; its effect is part of the Services it names.
func (c *compilation) route(r *route) {
	for i, ref := range r.Spec.ParentRefs {
		c.parent(r, ref, fmt.Sprintf("spec.parentRefs[%d]", i))
	}
	for i, rule := range r.Spec.Rules {
		c.rule(r, rule, fmt.Sprintf("spec.rules[%d]", i))
	}
	c.settled(Accepted)
	c.settled(ResolvedRefs)
}

func (c *compilation) rule(r *route, rule gatewayv1.HTTPRouteRule, field string) {
	f := ruleFilters(rule.Filters)
	for _, j := range f.unsupported {
		c.coded(Accepted, CodeUnsupportedValue, reason.Unsupported, fmt.Sprintf("%s.filters[%d]", field, j), string(rule.Filters[j].Type)+" is not supported; the rule answers 500")
	}
	for j, filter := range rule.Filters {
		if filter.RequestMirror == nil {
			continue
		}
		if _, _, problem := c.backend(r, filter.RequestMirror.BackendRef); problem != nil {
			c.coded(ResolvedRefs, problem.code, problem.reason, fmt.Sprintf("%s.filters[%d].requestMirror.backendRef", field, j), problem.message+"; nothing is mirrored to it")
		}
	}
	if rule.SessionPersistence != nil {
		c.partly(Accepted, reason.Unsupported, field+".sessionPersistence", "sessions do not persist")
	}
	for j, b := range rule.BackendRefs {
		at := fmt.Sprintf("%s.backendRefs[%d]", field, j)
		for _, k := range backendFilters(b.Filters).unsupported {
			c.coded(Accepted, CodeUnsupportedValue, reason.Unsupported, fmt.Sprintf("%s.filters[%d]", at, k), string(b.Filters[k].Type)+" of a backend is not supported; its share of requests is answered with 500")
		}
		if _, _, problem := c.backend(r, b.BackendObjectReference); problem != nil {
			c.coded(ResolvedRefs, problem.code, problem.reason, at, problem.message+"; its share of requests is answered with 500")
		}
	}
	if len(rule.BackendRefs) == 0 && f.redirect == nil {
		c.bad(ResolvedRefs, reason.BackendUnresolved, field+".backendRefs", "none is given; the rule answers 500")
	}
}

// parentCode says whose parent one is that is no service: a waypoint's routes name
// the services behind it instead; any other is another controller's.
func (c *compilation) parentCode(r *route, ref gatewayv1.ParentReference) string {
	if deref(ref.Kind, "Gateway") != "Gateway" || deref(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName {
		return CodeForeign
	}
	namespace := string(deref(ref.Namespace, gatewayv1.Namespace(r.Namespace)))
	g, ok := c.view.Get(source.Key{Kind: source.KindGateway, Namespace: namespace, Name: string(ref.Name)}).(*source.Gateway)
	if ok && IsWaypoint(g) {
		return CodeUnsupportedValue
	}
	return CodeForeign
}

func (c *compilation) parent(r *route, ref gatewayv1.ParentReference, field string) {
	key, ok := parentKey(r, ref)
	if !ok {
		c.coded(Accepted, c.parentCode(r, ref), reason.Unsupported, field, fmt.Sprintf("parent kind %s is not supported", deref(ref.Kind, "Gateway")))
		return
	}
	f, ok := c.frontendAt(key)
	if !ok {
		c.bad(Accepted, reason.TargetNotFound, field, key.String()+" does not exist")
		return
	}
	if !slices.ContainsFunc(f.ports, func(p source.ServicePort) bool { return covers(ref, f, uint16(p.Port)) }) {
		c.bad(Accepted, reason.TargetNotFound, field, key.String()+" has no such port")
		return
	}
	probe := &compilation{mesh: c.mesh, view: c.view, object: f.object}
	if wp, _ := probe.serviceWaypoint(f); wp == nil || wp.gateway == nil {
		c.bad(Accepted, reason.NoWaypoint, field, key.String()+" has no waypoint: the route is not in effect")
	}
}
