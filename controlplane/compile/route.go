package compile

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
)

// parentKey reports whether ref names a Service or a ServiceEntry, and which.
func parentKey(r *route, ref gatewayv1.ParentReference) (source.Key, bool) {
	key := source.Key{Namespace: string(deref(ref.Namespace, gatewayv1.Namespace(r.Namespace))), Name: string(ref.Name)}
	switch kind, group := deref(ref.Kind, "Gateway"), deref(ref.Group, "gateway.networking.k8s.io"); {
	case kind == "Service" && group == "":
		key.Kind = source.KindService
	case kind == "ServiceEntry" && group == groupNetworking:
		key.Kind = source.KindServiceEntry
	default:
		return source.Key{}, false
	}
	return key, true
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// routesOf returns the routes whose parent the frontend is, whatever the port.
func (c *compilation) routesOf(f frontend) []*route {
	parent := f.key()
	names := func(r *route) bool {
		return slices.ContainsFunc(r.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
			key, ok := parentKey(r, ref)
			return ok && key == parent
		})
	}
	var out []*route
	for _, kind := range [...]source.Kind{source.KindGRPCRoute, source.KindHTTPRoute} {
		for _, o := range c.view.List(kind, "", func(o source.Object) bool { r := parentsOf(o); return r != nil && names(r) }) {
			out = append(out, routeOf(o))
		}
	}
	return out
}

// attached reports whether a route's parents include that port of the frontend.
func attached(r *route, f frontend, port uint16) bool {
	return slices.ContainsFunc(r.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
		key, ok := parentKey(r, ref)
		return ok && key == f.key() && covers(ref, f, port)
	})
}

// covers reports whether a reference to the frontend includes that port.
func covers(ref gatewayv1.ParentReference, f frontend, port uint16) bool {
	if ref.Port != nil && uint16(*ref.Port) != port {
		return false
	}
	return ref.SectionName == nil || slices.ContainsFunc(f.ports, func(p source.ServicePort) bool {
		return p.Name == string(*ref.SectionName) && uint16(p.Port) == port
	})
}

// routeTables compiles the routes of one port. Routes of the frontend's own
// namespace are for everybody; those of another namespace are for the clients
// there, and replace the former for them.
func (c *compilation) routeTables(pb *waypointpb.Service, name string, f frontend, port mesh.Port,
	routes []*route, clusters clusterSet) []*routev3.RouteConfiguration {
	byNamespace := map[string][]*route{}
	for _, r := range routes {
		if attached(r, f, port.Service) {
			byNamespace[r.Namespace] = append(byNamespace[r.Namespace], r)
		}
	}
	var out []*routev3.RouteConfiguration
	for _, ns := range sortedKeys(byNamespace) {
		table := name
		if ns == f.meta().Namespace {
			pb.RouteConfig = name
		} else {
			table = name + "/from/" + ns
			pb.RouteTables = append(pb.RouteTables, &waypointpb.RouteTable{SourceNamespaces: []string{ns}, RouteConfig: table})
		}
		out = append(out, c.routeTable(table, port.Service, byNamespace[ns], clusters))
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// candidate is one match of one rule, with what decides its precedence.
type candidate struct {
	route *route
	match gatewayv1.HTTPRouteMatch
	rule  int
	index int // of the match in its rule
	envoy *routev3.Route
}

// rank is where a candidate's path stands among others.
func (c candidate) rank() (kind, length int) {
	if c.route.grpc != nil {
		return c.route.methodRank(c.rule, c.index)
	}
	return pathRank(c.match)
}

// routeTable compiles routes into one table. A host that some route names has a
// virtual host of its own, which holds the routes for that host, for wildcards
// that cover it and for any host, in the order of the Gateway API's precedence.
func (c *compilation) routeTable(name string, port uint16, routes []*route, clusters clusterSet) *routev3.RouteConfiguration {
	candidates := c.candidates(port, routes, clusters)
	out := &routev3.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
	for _, host := range hostsOf(routes) {
		vh := &routev3.VirtualHost{Name: host, Domains: []string{host}}
		for _, h := range covering(host, routes) {
			for _, cand := range candidates {
				if routeHas(cand.route, h) {
					vh.Routes = append(vh.Routes, cand.envoy)
				}
			}
		}
		out.VirtualHosts = append(out.VirtualHosts, vh)
	}
	return out
}

const anyHost = "*"

// hostsOf returns every host that routes name, and "*".
func hostsOf(routes []*route) []string {
	set := map[string]bool{anyHost: true}
	for _, r := range routes {
		for _, h := range r.Spec.Hostnames {
			set[strings.ToLower(string(h))] = true
		}
	}
	return sortedKeys(set)
}

// covering returns the hosts, among those of the routes, whose routes apply to
// requests for host, most specific first.
func covering(host string, routes []*route) []string {
	var out []string
	for _, h := range hostsOf(routes) {
		if h == host || h == anyHost || strings.HasPrefix(h, "*.") && strings.HasSuffix(host, h[1:]) {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		return cmp.Or(boolCompare(strings.HasPrefix(b, "*"), strings.HasPrefix(a, "*")), cmp.Compare(len(b), len(a)))
	})
	return out
}

// boolCompare orders true before false.
func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func routeHas(r *route, host string) bool {
	if len(r.Spec.Hostnames) == 0 {
		return host == anyHost
	}
	return slices.ContainsFunc(r.Spec.Hostnames, func(h gatewayv1.Hostname) bool { return strings.ToLower(string(h)) == host })
}

// candidates returns every match of every rule in the order of precedence.
func (c *compilation) candidates(port uint16, routes []*route, clusters clusterSet) []candidate {
	var out []candidate
	for _, r := range routes {
		for i, rule := range r.Spec.Rules {
			matches := rule.Matches
			if len(matches) == 0 {
				matches = []gatewayv1.HTTPRouteMatch{{}}
			}
			for j, m := range matches {
				envoy := &routev3.Route{Name: ruleName(r, i), Match: routeMatch(m)}
				a := &action{c: c, route: r, rule: rule, match: m, port: port, clusters: clusters}
				a.fill(envoy)
				out = append(out, candidate{r, m, i, j, envoy})
			}
		}
	}
	slices.SortStableFunc(out, precedence)
	return out
}

// ruleName is how access logs call a rule: by its name, or else by its number.
func ruleName(r *route, i int) string {
	return r.Namespace + "/" + r.Name + "/" + string(deref(r.Spec.Rules[i].Name, gatewayv1.SectionName(strconv.Itoa(i))))
}

// precedence is the Gateway API's: exact path, longest prefix, method, number of
// headers, number of query parameters, oldest route, its name, order within it.
// Where regular expressions stand is left open there; here they come after exact
// paths, because after prefixes "/" would hide them all. A GRPCRoute's come before
// those of HTTPRoutes: for a service that has both the more specific kind counts.
func precedence(a, b candidate) int {
	ta, la := a.rank()
	tb, lb := b.rank()
	if order := cmp.Or(boolCompare(a.route.grpc != nil, b.route.grpc != nil), cmp.Compare(ta, tb), cmp.Compare(lb, la),
		boolCompare(a.match.Method != nil, b.match.Method != nil),
		cmp.Compare(len(b.match.Headers), len(a.match.Headers)),
		cmp.Compare(len(b.match.QueryParams), len(a.match.QueryParams))); order != 0 {
		return order
	}
	if a.route != b.route {
		if a.route.Older(&b.route.Meta) {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.index, b.index))
}

func pathRank(m gatewayv1.HTTPRouteMatch) (kind, length int) {
	kindName, value := pathOf(m)
	switch kindName {
	case gatewayv1.PathMatchExact:
		return 0, len(value)
	case gatewayv1.PathMatchRegularExpression:
		return 1, len(value)
	}
	return 2, len(strings.TrimSuffix(value, "/"))
}

func pathOf(m gatewayv1.HTTPRouteMatch) (gatewayv1.PathMatchType, string) {
	if m.Path == nil {
		return gatewayv1.PathMatchPathPrefix, "/"
	}
	return deref(m.Path.Type, gatewayv1.PathMatchPathPrefix), deref(m.Path.Value, "/")
}
