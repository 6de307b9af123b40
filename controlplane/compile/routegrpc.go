package compile

import (
	"fmt"
	"regexp"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// route is a route as it is compiled: an HTTPRoute, or a GRPCRoute in an HTTPRoute's
// terms. Rules, matches, filters and backends are at the same places in both.
//
//	service a.B, method C   path /a.B/C
//	service a.B             paths under /a.B
//	method C                paths /…/C
//	neither                 every path
type route struct {
	*source.HTTPRoute
	grpc *source.GRPCRoute // nil for an HTTPRoute
}

// routeOf returns the route that an object is, nil when it is none.
func routeOf(o source.Object) *route {
	switch o := o.(type) {
	case *source.HTTPRoute:
		return &route{HTTPRoute: o}
	case *source.GRPCRoute:
		out := parentsOf(o)
		out.Spec.Hostnames = o.Spec.Hostnames
		for _, r := range o.Spec.Rules {
			out.Spec.Rules = append(out.Spec.Rules, grpcRule(r))
		}
		return out
	}
	return nil
}

// parentsOf is routeOf for those who look at parents only.
func parentsOf(o source.Object) *route {
	switch o := o.(type) {
	case *source.HTTPRoute:
		return &route{HTTPRoute: o}
	case *source.GRPCRoute:
		return &route{grpc: o, HTTPRoute: &source.HTTPRoute{Meta: o.Meta, Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: o.Spec.CommonRouteSpec}}}
	}
	return nil
}

func (r *route) kind() source.Kind {
	if r.grpc != nil {
		return source.KindGRPCRoute
	}
	return source.KindHTTPRoute
}

func grpcRule(r gatewayv1.GRPCRouteRule) gatewayv1.HTTPRouteRule {
	out := gatewayv1.HTTPRouteRule{Name: r.Name, Filters: grpcFilters(r.Filters), SessionPersistence: r.SessionPersistence}
	for _, m := range r.Matches {
		out.Matches = append(out.Matches, grpcMatch(m))
	}
	for _, b := range r.BackendRefs {
		out.BackendRefs = append(out.BackendRefs, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: grpcFilters(b.Filters)})
	}
	return out
}

func grpcMatch(m gatewayv1.GRPCRouteMatch) gatewayv1.HTTPRouteMatch {
	kind, value := methodPath(m.Method)
	out := gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Type: &kind, Value: &value}}
	for _, h := range m.Headers {
		headerKind := gatewayv1.HeaderMatchType(deref(h.Type, gatewayv1.GRPCHeaderMatchExact))
		out.Headers = append(out.Headers, gatewayv1.HTTPHeaderMatch{Type: &headerKind, Name: gatewayv1.HTTPHeaderName(h.Name), Value: h.Value})
	}
	return out
}

// methodPath is the path of a service and method.
func methodPath(m *gatewayv1.GRPCMethodMatch) (gatewayv1.PathMatchType, string) {
	service, method, isRegex := methodOf(m)
	switch {
	case service == "" && method == "":
		return gatewayv1.PathMatchPathPrefix, "/"
	case isRegex:
		return gatewayv1.PathMatchRegularExpression, "/" + group(service) + "/" + group(method)
	case service == "":
		return gatewayv1.PathMatchRegularExpression, "/[^/]+/" + regexp.QuoteMeta(method)
	case method == "":
		return gatewayv1.PathMatchPathPrefix, "/" + service
	}
	return gatewayv1.PathMatchExact, "/" + service + "/" + method
}

// group makes an expression one element of a path; none matches every element.
func group(expression string) string {
	if expression == "" {
		return "[^/]+"
	}
	return "(?:" + expression + ")"
}

func methodOf(m *gatewayv1.GRPCMethodMatch) (service, method string, isRegex bool) {
	if m == nil {
		return "", "", false
	}
	return deref(m.Service, ""), deref(m.Method, ""), deref(m.Type, gatewayv1.GRPCMethodMatchExact) == gatewayv1.GRPCMethodMatchRegularExpression
}

// methodRank orders matches by the length of the service, and then of the method.
func (r *route) methodRank(rule, match int) (kind, length int) {
	matches := r.grpc.Spec.Rules[rule].Matches
	if match >= len(matches) { // a rule without matches has one, of everything
		return 0, 0
	}
	service, method, _ := methodOf(matches[match].Method)
	return 0, len(service)<<16 + min(len(method), 1<<16-1)
}

// grpcFilters are filters in an HTTPRoute's terms. Those of the same name mean the
// same.
func grpcFilters(list []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	var out []gatewayv1.HTTPRouteFilter
	for _, f := range list {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}

// methods checks what the matches of a GRPCRoute's rule say of services and methods.
func (v *validation) methods(field string, rule gatewayv1.GRPCRouteRule) {
	for j, m := range rule.Matches {
		at := fmt.Sprintf("%s.matches[%d].method", field, j)
		service, method, isRegex := methodOf(m.Method)
		if isRegex {
			v.regex(at+".service", service)
			v.regex(at+".method", method)
			continue
		}
		if strings.Contains(service, "/") {
			v.invalid(at+".service", "%q must not contain /", service)
		}
		if strings.Contains(method, "/") {
			v.invalid(at+".method", "%q must not contain /", method)
		}
	}
}
