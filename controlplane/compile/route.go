package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
)

// parentService reports whether ref names a Service, and which.
func parentService(r *source.HTTPRoute, ref gatewayv1.ParentReference) (source.Key, bool) {
	if deref(ref.Kind, "Gateway") != "Service" || deref(ref.Group, "gateway.networking.k8s.io") != "" {
		return source.Key{}, false
	}
	return source.Key{Kind: source.KindService, Namespace: string(deref(ref.Namespace, gatewayv1.Namespace(r.Namespace))), Name: string(ref.Name)}, true
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// routesOf returns the HTTPRoutes whose parent the service is, whatever the port.
func (c *compilation) routesOf(s *source.Service) []*source.HTTPRoute {
	list := c.view.List(source.KindHTTPRoute, "", func(o source.Object) bool {
		r, ok := o.(*source.HTTPRoute)
		return ok && slices.ContainsFunc(r.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
			key, ok := parentService(r, ref)
			return ok && key == s.Key()
		})
	})
	out := make([]*source.HTTPRoute, len(list))
	for i, o := range list {
		out[i] = o.(*source.HTTPRoute)
	}
	return out
}

// attached reports whether a route's parents include that port of the service.
func attached(r *source.HTTPRoute, s *source.Service, port uint16) bool {
	return slices.ContainsFunc(r.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
		key, ok := parentService(r, ref)
		if !ok || key != s.Key() || ref.Port != nil && uint16(*ref.Port) != port {
			return false
		}
		return ref.SectionName == nil || slices.ContainsFunc(s.Ports, func(p source.ServicePort) bool {
			return p.Name == string(*ref.SectionName) && uint16(p.Port) == port
		})
	})
}

// routeTables compiles the routes of one port. Routes of the service's own
// namespace are for everybody; those of another namespace are for the clients
// there, and replace the former for them.
func (c *compilation) routeTables(pb *waypointpb.Service, name string, s *source.Service, port mesh.Port,
	routes []*source.HTTPRoute, clusters clusterSet) []*routev3.RouteConfiguration {
	byNamespace := map[string][]*source.HTTPRoute{}
	for _, r := range routes {
		if attached(r, s, port.Service) {
			byNamespace[r.Namespace] = append(byNamespace[r.Namespace], r)
		}
	}
	var out []*routev3.RouteConfiguration
	for _, ns := range sortedKeys(byNamespace) {
		table := name
		if ns == s.Namespace {
			pb.RouteConfig = name
		} else {
			table = name + "/from/" + ns
			pb.RouteTables = append(pb.RouteTables, &waypointpb.RouteTable{SourceNamespaces: []string{ns}, RouteConfig: table})
		}
		out = append(out, c.routeTable(table, byNamespace[ns], clusters))
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
	route *source.HTTPRoute
	match gatewayv1.HTTPRouteMatch
	rule  int
	index int // of the match in its rule
	envoy *routev3.Route
}

// routeTable compiles routes into one table. A host that some route names has a
// virtual host of its own, which holds the routes for that host, for wildcards
// that cover it and for any host, in the order of the Gateway API's precedence.
func (c *compilation) routeTable(name string, routes []*source.HTTPRoute, clusters clusterSet) *routev3.RouteConfiguration {
	candidates := c.candidates(routes, clusters)
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
func hostsOf(routes []*source.HTTPRoute) []string {
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
func covering(host string, routes []*source.HTTPRoute) []string {
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

func routeHas(r *source.HTTPRoute, host string) bool {
	if len(r.Spec.Hostnames) == 0 {
		return host == anyHost
	}
	return slices.ContainsFunc(r.Spec.Hostnames, func(h gatewayv1.Hostname) bool { return strings.ToLower(string(h)) == host })
}

// candidates returns every match of every rule in the order of precedence.
func (c *compilation) candidates(routes []*source.HTTPRoute, clusters clusterSet) []candidate {
	var out []candidate
	for _, r := range routes {
		for i, rule := range r.Spec.Rules {
			matches := rule.Matches
			if len(matches) == 0 {
				matches = []gatewayv1.HTTPRouteMatch{{}}
			}
			for j, m := range matches {
				route := &routev3.Route{Name: fmt.Sprintf("%s/%s/%d", r.Namespace, r.Name, i), Match: routeMatch(m)}
				c.action(route, r, rule, clusters)
				out = append(out, candidate{r, m, i, j, route})
			}
		}
	}
	slices.SortStableFunc(out, precedence)
	return out
}

// precedence is the Gateway API's: exact path, longest prefix, method, number of
// headers, number of query parameters, oldest route, its name, order within it.
// Where regular expressions stand is left open there; here they come after exact
// paths, because after prefixes "/" would hide them all.
func precedence(a, b candidate) int {
	ta, la := pathRank(a.match)
	tb, lb := pathRank(b.match)
	if order := cmp.Or(cmp.Compare(ta, tb), cmp.Compare(lb, la),
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

// action fills in what happens to requests that match.
func (c *compilation) action(route *routev3.Route, r *source.HTTPRoute, rule gatewayv1.HTTPRouteRule, clusters clusterSet) {
	if !headerFilters(route, rule.Filters) {
		route.Action = serverError("a filter of the route: " + string(reason.Unsupported))
		return
	}
	weighted, resolved := c.backends(r, rule, clusters)
	if resolved == 0 {
		route.Action = serverError(string(reason.BackendUnresolved))
		return
	}
	action := &routev3.RouteAction{
		Timeout:                     durationpb.New(requestTimeout(rule)),
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
	}
	if len(weighted) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: weighted[0].Name}
	} else {
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: weighted}}
	}
	route.Action = &routev3.Route_Route{Route: action}
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
func (c *compilation) backends(r *source.HTTPRoute, rule gatewayv1.HTTPRouteRule, clusters clusterSet) (out []*routev3.WeightedCluster_ClusterWeight, resolved uint32) {
	for _, b := range rule.BackendRefs {
		weight := uint32(deref(b.Weight, 1))
		if weight == 0 {
			continue
		}
		name := unresolvedCluster
		if service, port, problem := c.backend(r, b); problem == "" {
			name = clusters.add(service, port)
			resolved += weight
		}
		out = append(out, &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: wrapperspb.UInt32(weight)})
	}
	return out, resolved
}

// backend resolves one reference, or says why it cannot be.
func (c *compilation) backend(r *source.HTTPRoute, b gatewayv1.HTTPBackendRef) (mesh.ServiceName, uint16, string) {
	if deref(b.Kind, "Service") != "Service" || deref(b.Group, "") != "" {
		return mesh.ServiceName{}, 0, fmt.Sprintf("kind %s is not supported", deref(b.Kind, "Service"))
	}
	if len(b.Filters) > 0 {
		return mesh.ServiceName{}, 0, "filters of a backend are not supported"
	}
	ns := string(deref(b.Namespace, gatewayv1.Namespace(r.Namespace)))
	s, ok := c.view.Get(source.Key{Kind: source.KindService, Namespace: ns, Name: string(b.Name)}).(*source.Service)
	if !ok || s.Type == "ExternalName" {
		return mesh.ServiceName{}, 0, fmt.Sprintf("service %s/%s does not exist", ns, b.Name)
	}
	if b.Port == nil {
		return mesh.ServiceName{}, 0, "port is required"
	}
	for _, p := range s.Ports {
		if p.Port == int32(*b.Port) && p.Protocol == "TCP" {
			return mesh.ServiceName{Namespace: ns, Hostname: c.mesh.hostname(ns, s.Name)}, uint16(p.Port), ""
		}
	}
	return mesh.ServiceName{}, 0, fmt.Sprintf("service %s/%s has no TCP port %d", ns, b.Name, *b.Port)
}

// requestTimeout is how long a request may take; 0 = for ever. Without retries
// there is one try, so the limit of a try bounds the request as well.
func requestTimeout(rule gatewayv1.HTTPRouteRule) time.Duration {
	if rule.Timeouts == nil {
		return 0
	}
	request, _ := parseDuration(rule.Timeouts.Request)
	try, _ := parseDuration(rule.Timeouts.BackendRequest)
	if try > 0 && (request == 0 || try < request) {
		return try
	}
	return request
}

func parseDuration(d *gatewayv1.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	return time.ParseDuration(string(*d))
}

// headerFilters adds the header changes of a rule to route; it reports false
// when the rule has a filter that is not supported.
func headerFilters(route *routev3.Route, filters []gatewayv1.HTTPRouteFilter) bool {
	for _, f := range filters {
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			route.RequestHeadersToAdd = append(route.RequestHeadersToAdd, headerOptions(f.RequestHeaderModifier)...)
			route.RequestHeadersToRemove = append(route.RequestHeadersToRemove, f.RequestHeaderModifier.Remove...)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			route.ResponseHeadersToAdd = append(route.ResponseHeadersToAdd, headerOptions(f.ResponseHeaderModifier)...)
			route.ResponseHeadersToRemove = append(route.ResponseHeadersToRemove, f.ResponseHeaderModifier.Remove...)
		default:
			return false
		}
	}
	return true
}

func headerOptions(f *gatewayv1.HTTPHeaderFilter) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, h := range f.Set {
		out = append(out, headerOption(h, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, h := range f.Add {
		out = append(out, headerOption(h, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	return out
}

func headerOption(h gatewayv1.HTTPHeader, a corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: string(h.Name), Value: h.Value}, AppendAction: a}
}

// route judges an HTTPRoute; its effect is part of the Services it names.
func (c *compilation) route(r *source.HTTPRoute) {
	for i, ref := range r.Spec.ParentRefs {
		c.parent(r, ref, fmt.Sprintf("spec.parentRefs[%d]", i))
	}
	for i, rule := range r.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		for j, f := range rule.Filters {
			if !headerFilters(&routev3.Route{}, []gatewayv1.HTTPRouteFilter{f}) {
				c.bad(Accepted, reason.Unsupported, fmt.Sprintf("%s.filters[%d]", field, j), string(f.Type)+" is not supported; the rule answers 500")
			}
		}
		if rule.Retry != nil {
			c.bad(Accepted, reason.Unsupported, field+".retry", "requests are not retried")
		}
		if rule.SessionPersistence != nil {
			c.bad(Accepted, reason.Unsupported, field+".sessionPersistence", "sessions do not persist")
		}
		for j, b := range rule.BackendRefs {
			if _, _, problem := c.backend(r, b); problem != "" {
				c.bad(ResolvedRefs, reason.BackendUnresolved, fmt.Sprintf("%s.backendRefs[%d]", field, j), problem+"; its share of requests is answered with 500")
			}
		}
	}
	c.settled(Accepted)
	c.settled(ResolvedRefs)
}

func (c *compilation) parent(r *source.HTTPRoute, ref gatewayv1.ParentReference, field string) {
	key, ok := parentService(r, ref)
	if !ok {
		c.bad(Accepted, reason.Unsupported, field, fmt.Sprintf("parent kind %s is not supported", deref(ref.Kind, "Gateway")))
		return
	}
	s, ok := c.view.Get(key).(*source.Service)
	if !ok {
		c.bad(Accepted, reason.TargetNotFound, field, key.String()+" does not exist")
		return
	}
	if !slices.ContainsFunc(s.Ports, func(p source.ServicePort) bool { return attached(r, s, uint16(p.Port)) }) {
		c.bad(Accepted, reason.TargetNotFound, field, key.String()+" has no such port")
		return
	}
	probe := &compilation{mesh: c.mesh, view: c.view, object: s}
	if wp, _ := probe.serviceWaypoint(s); wp == nil || wp.gateway == nil {
		c.bad(Accepted, reason.NoWaypoint, field, key.String()+" has no waypoint: the route is not in effect")
	}
}
