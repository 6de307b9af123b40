package compile

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// action says what happens to the requests that one match of a rule takes.
type action struct {
	c        *compilation
	route    *route
	rule     gatewayv1.HTTPRouteRule
	match    gatewayv1.HTTPRouteMatch
	port     uint16 // that clients address
	clusters clusterSet
}

// fill completes a route whose name and match are there.
func (a *action) fill(out *routev3.Route) {
	f := ruleFilters(a.rule.Filters)
	if len(f.unsupported) > 0 {
		out.Action = serverError("a filter of the route: " + string(reason.Unsupported))
		return
	}
	f.headers.route(out)
	if f.redirect != nil {
		out.Action = &routev3.Route_Redirect{Redirect: redirect(f.redirect, a.match, a.port)}
		return
	}
	weighted, resolved := a.backends()
	if resolved == 0 {
		out.Action = serverError(string(reason.BackendUnresolved))
		return
	}
	forward := &routev3.RouteAction{
		Timeout:                     durationpb.New(requestTimeout(a.rule)),
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
		RetryPolicy:                 retryPolicy(a.rule),
	}
	if w := weighted[0]; len(weighted) == 1 && plain(w) {
		forward.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: w.Name}
	} else {
		forward.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: weighted}}
	}
	if f.rewrite != nil {
		rewrite(forward, f.rewrite, a.match)
	}
	for _, m := range f.mirrors {
		a.mirror(forward, m)
	}
	out.Action = &routev3.Route_Route{Route: forward}
}

// serverError answers what the Gateway API asks for when no backend can be
// resolved, or when the rule asks for something that is not supported; the body and
// the waypoint's access log say which.
func serverError(why string) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 500,
		Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: why}},
	}}
}

// backends returns where requests go, leaving out weight 0, and the total weight
// of those that can be resolved.
func (a *action) backends() (out []*routev3.WeightedCluster_ClusterWeight, resolved uint32) {
	for _, b := range a.rule.BackendRefs {
		weight := uint32(deref(b.Weight, 1))
		if weight == 0 {
			continue
		}
		w := &routev3.WeightedCluster_ClusterWeight{Name: unresolvedCluster, Weight: wrapperspb.UInt32(weight)}
		service, port, problem := a.c.backend(a.route, b.BackendObjectReference)
		f := backendFilters(b.Filters)
		if problem == nil && len(f.unsupported) == 0 {
			w.Name = a.clusters.add(service, port)
			f.headers.cluster(w)
			resolved += weight
		}
		out = append(out, w)
	}
	return out, resolved
}

// plain reports whether a share of the requests is all of them, unchanged.
func plain(w *routev3.WeightedCluster_ClusterWeight) bool {
	return len(w.RequestHeadersToAdd)+len(w.RequestHeadersToRemove)+len(w.ResponseHeadersToAdd)+len(w.ResponseHeadersToRemove) == 0
}

// mirror sends a copy of the requests to another backend. One that cannot be
// resolved gets none, which changes nothing for the client.
func (a *action) mirror(forward *routev3.RouteAction, m *gatewayv1.HTTPRequestMirrorFilter) {
	service, port, problem := a.c.backend(a.route, m.BackendRef)
	n, of := mirrorShare(m)
	if problem != nil || n == 0 {
		return
	}
	policy := &routev3.RouteAction_RequestMirrorPolicy{Cluster: a.clusters.add(service, port)}
	if n < of {
		policy.RuntimeFraction = fraction(n, of)
	}
	forward.RequestMirrorPolicies = append(forward.RequestMirrorPolicies, policy)
}

// requestTimeout is how long a request may take; 0 = for ever. Without retries
// there is one try, so the limit of a try bounds the request as well.
func requestTimeout(rule gatewayv1.HTTPRouteRule) time.Duration {
	if rule.Timeouts == nil {
		return 0
	}
	request, _ := parseDuration(rule.Timeouts.Request)
	try := tryTimeout(rule)
	if rule.Retry == nil && try > 0 && (request == 0 || try < request) {
		return try
	}
	return request
}

func tryTimeout(rule gatewayv1.HTTPRouteRule) time.Duration {
	if rule.Timeouts == nil {
		return 0
	}
	try, _ := parseDuration(rule.Timeouts.BackendRequest)
	return try
}

func parseDuration(d *gatewayv1.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	return time.ParseDuration(string(*d))
}

// retryPolicy translates when a request is sent again: after a failed connection,
// and after the answers that the rule lists.
func retryPolicy(rule gatewayv1.HTTPRouteRule) *routev3.RetryPolicy {
	r := rule.Retry
	if r == nil {
		return nil
	}
	out := &routev3.RetryPolicy{RetryOn: "connect-failure,reset", NumRetries: wrapperspb.UInt32(uint32(max(deref(r.Attempts, 1), 0)))}
	if len(r.Codes) > 0 {
		out.RetryOn += ",retriable-status-codes"
	}
	for _, code := range r.Codes {
		out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(code))
	}
	if try := tryTimeout(rule); try > 0 {
		out.PerTryTimeout = durationpb.New(try)
	}
	if pause, _ := parseDuration(r.Backoff); pause > 0 {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(pause)}
	}
	return out
}

// unresolved is why a reference to a backend leads nowhere.
type unresolved struct {
	code    string
	reason  reason.Reason
	message string
}

func unresolvedf(code string, r reason.Reason, format string, args ...any) *unresolved {
	return &unresolved{code, r, fmt.Sprintf(format, args...)}
}

// backend resolves one reference, or says why it cannot be.
func (c *compilation) backend(r *route, b gatewayv1.BackendObjectReference) (mesh.ServiceName, uint16, *unresolved) {
	if b.Port == nil {
		return mesh.ServiceName{}, 0, unresolvedf(CodeUnsupportedValue, reason.MissingField, "port is required")
	}
	kind, group := deref(b.Kind, "Service"), deref(b.Group, "")
	ns := string(deref(b.Namespace, gatewayv1.Namespace(r.Namespace)))
	var f frontend
	var host string
	switch {
	case kind == "Service" && group == "":
		s, ok := c.view.Get(source.Key{Kind: source.KindService, Namespace: ns, Name: string(b.Name)}).(*source.Service)
		if !ok || s.Type == "ExternalName" {
			return mesh.ServiceName{}, 0, unresolvedf("", reason.BackendUnresolved, "service %s/%s does not exist", ns, b.Name)
		}
		f, host = serviceFrontend(s), c.mesh.hostname(ns, s.Name)
	case kind == "Hostname" && group == groupNetworking:
		var ok bool
		if f, ok = c.byHostname(string(b.Name), r.Namespace); !ok {
			return mesh.ServiceName{}, 0, unresolvedf("", reason.BackendUnresolved, "no service has the host %s", b.Name)
		}
		ns, host = f.meta().Namespace, string(b.Name)
	default:
		return mesh.ServiceName{}, 0, unresolvedf(CodeInvalidKind, reason.Unsupported, "kind %s is not supported", kind)
	}
	if kind == "Service" && ns != r.Namespace && !c.permitted(r, ns, string(b.Name)) {
		return mesh.ServiceName{}, 0, unresolvedf(CodeRefNotPermitted, reason.RefNotPermitted, "no ReferenceGrant in namespace %s admits it", ns)
	}
	for _, p := range f.ports {
		if p.Port == int32(*b.Port) {
			return mesh.ServiceName{Namespace: ns, Hostname: host}, uint16(p.Port), nil
		}
	}
	return mesh.ServiceName{}, 0, unresolvedf("", reason.BackendUnresolved, "%s %s/%s has no TCP port %d", f.key().Kind, ns, f.meta().Name, *b.Port)
}

// permitted reports whether namespace lets the route refer to its service. The
// namespace that a route is made for as a parent has not to: clients address it
// anyway.
func (c *compilation) permitted(r *route, namespace, name string) bool {
	grants := c.view.List(source.KindReferenceGrant, namespace, func(o source.Object) bool {
		g, ok := o.(*source.ReferenceGrant)
		return ok && admitsReference(g, r.kind(), r.Namespace, name)
	})
	if len(grants) > 0 {
		return true
	}
	for _, ref := range r.Spec.ParentRefs {
		if key, ok := parentKey(r, ref); ok && key == (source.Key{Kind: source.KindService, Namespace: namespace, Name: name}) {
			return true
		}
	}
	return false
}

// admitsReference reports whether a grant lets routes of a kind and namespace refer
// to that service.
func admitsReference(g *source.ReferenceGrant, kind source.Kind, from, name string) bool {
	trusted := false
	for _, f := range g.Spec.From {
		trusted = trusted || f.Group == "gateway.networking.k8s.io" && string(f.Kind) == string(kind) && string(f.Namespace) == from
	}
	for _, t := range g.Spec.To {
		if trusted && (t.Group == "" || t.Group == "core") && t.Kind == "Service" && (t.Name == nil || *t.Name == "" || string(*t.Name) == name) {
			return true
		}
	}
	return false
}
