package compile

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// routeMatch translates one match of a rule.
func routeMatch(m gatewayv1.HTTPRouteMatch) *routev3.RouteMatch {
	out := &routev3.RouteMatch{}
	setPath(out, m)
	if m.Method != nil {
		out.Headers = append(out.Headers, header(":method", exact(string(*m.Method))))
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, header(string(h.Name), valueMatch(string(deref(h.Type, gatewayv1.HeaderMatchExact)), h.Value)))
	}
	for _, q := range m.QueryParams {
		out.QueryParameters = append(out.QueryParameters, &routev3.QueryParameterMatcher{
			Name: string(q.Name),
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{
				StringMatch: valueMatch(string(deref(q.Type, gatewayv1.QueryParamMatchExact)), q.Value),
			},
		})
	}
	return out
}

// setPath translates the path. A prefix is one of path elements: /foo matches
// /foo and /foo/bar but not /foobar.
func setPath(out *routev3.RouteMatch, m gatewayv1.HTTPRouteMatch) {
	switch kind, value := pathOf(m); {
	case kind == gatewayv1.PathMatchExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: value}
	case kind == gatewayv1.PathMatchRegularExpression:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: value}}
	case strings.TrimRight(value, "/") == "":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	default:
		out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: strings.TrimRight(value, "/")}
	}
}

func header(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 strings.ToLower(name),
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}
}

func exact(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: v}}
}

func valueMatch(kind, v string) *matcherv3.StringMatcher {
	if kind == "RegularExpression" {
		return regex(v)
	}
	return exact(v)
}
