package compile

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

func path(kind gatewayv1.PathMatchType, value string) *gatewayv1.HTTPPathMatch {
	return &gatewayv1.HTTPPathMatch{Type: &kind, Value: &value}
}

func method(kind gatewayv1.GRPCMethodMatchType, service, name string) *gatewayv1.GRPCMethodMatch {
	return &gatewayv1.GRPCMethodMatch{Type: &kind, Service: &service, Method: &name}
}

// TestPrecedence: however the rules are written, they come out in the order of
// the Gateway API.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	get := gatewayv1.HTTPMethod("GET")
	header := func(names ...string) (out []gatewayv1.HTTPHeaderMatch) {
		for _, n := range names {
			out = append(out, gatewayv1.HTTPHeaderMatch{Name: gatewayv1.HTTPHeaderName(n), Value: "1"})
		}
		return out
	}
	query := []gatewayv1.HTTPQueryParamMatch{{Name: "q", Value: "1"}}
	old := routeOf(&source.HTTPRoute{Meta: source.Meta{Namespace: "b", Name: "b", Created: time.Unix(1, 0)}})
	young := routeOf(&source.HTTPRoute{Meta: source.Meta{Namespace: "a", Name: "a", Created: time.Unix(2, 0)}})
	younger := routeOf(&source.HTTPRoute{Meta: source.Meta{Namespace: "a", Name: "b", Created: time.Unix(2, 0)}})
	grpc := routeOf(&source.GRPCRoute{Meta: source.Meta{Namespace: "z", Name: "z", Created: time.Unix(3, 0)}, Spec: gatewayv1.GRPCRouteSpec{
		Rules: []gatewayv1.GRPCRouteRule{{Matches: []gatewayv1.GRPCRouteMatch{
			{Method: method("Exact", "", "LongMethod")},
			{Method: method("Exact", "a.Short", "")},
			{Method: method("RegularExpression", "a.Longest", "")},
			{Method: method("Exact", "a.Short", "M")},
		}}},
	}})
	want := []candidate{
		{route: grpc, index: 2}, {route: grpc, index: 3}, {route: grpc, index: 1}, {route: grpc, index: 0},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("Exact", "/a")}},
		{route: old, match: gatewayv1.HTTPRouteMatch{Path: path("RegularExpression", "/.*")}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b/c")}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b"), Method: &get}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b/"), Headers: header("x", "y")}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b"), Headers: header("x"), QueryParams: query}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b"), Headers: header("x")}},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/a/b"), QueryParams: query}},
		{route: old, match: gatewayv1.HTTPRouteMatch{}},
		{route: young, match: gatewayv1.HTTPRouteMatch{}, rule: 0},
		{route: young, match: gatewayv1.HTTPRouteMatch{Path: path("PathPrefix", "/")}, rule: 1, index: 0},
		{route: young, match: gatewayv1.HTTPRouteMatch{}, rule: 1, index: 1},
		{route: younger, match: gatewayv1.HTTPRouteMatch{}},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		got := slices.Clone(want)
		r.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortStableFunc(got, precedence)
		for i := range want {
			if precedence(got[i], want[i]) != 0 || got[i].route != want[i].route {
				t.Fatalf("place %d: %+v, want %+v", i, got[i], want[i])
			}
		}
	}
}

// TestHosts: a request for a host sees the routes of that host first, then of the
// wildcards that cover it, then those for any host.
func TestHosts(t *testing.T) {
	t.Parallel()
	of := func(hosts ...gatewayv1.Hostname) *route {
		return routeOf(&source.HTTPRoute{Spec: gatewayv1.HTTPRouteSpec{Hostnames: hosts}})
	}
	routes := []*route{of(), of("a.x.org", "*.org"), of("*.x.org"), of("B.org")}
	if got, want := hostsOf(routes), []string{"*", "*.org", "*.x.org", "a.x.org", "b.org"}; !slices.Equal(got, want) {
		t.Errorf("hosts %q, want %q", got, want)
	}
	for host, want := range map[string][]string{
		"*":       {"*"},
		"b.org":   {"b.org", "*.org", "*"},
		"a.x.org": {"a.x.org", "*.x.org", "*.org", "*"},
		"*.x.org": {"*.x.org", "*.org", "*"},
	} {
		if got := covering(host, routes); !slices.Equal(got, want) {
			t.Errorf("%s is covered by %q, want %q", host, got, want)
		}
	}
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{"x": "Exact", "x*": "Prefix", "*x": "Suffix", "*": "Presence"} {
		if got := stringMatch(s).Kind.String(); got != want {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	}
	for _, bad := range []string{"10.0.0.0/33", "x", "1.2.3", "::/129", ""} {
		if _, err := parsePrefix(bad); err == nil {
			t.Errorf("%q is a prefix", bad)
		}
	}
}
