package gateway

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// group of Gateways and routes.
const group = gatewayv1.GroupName

// routeResources are the kinds of routes that can be attached to a waypoint.
func routeResources() map[string]string {
	return map[string]string{"HTTPRoute": "httproutes", "GRPCRoute": "grpcroutes"}
}

// Route is what is kept of a route: which Gateways it names as parents.
type Route struct {
	metav1.ObjectMeta // namespace and name
	Kind              string
	Parents           []gatewayv1.ParentReference // Gateways only
}

// parentGateway returns the namespace and name of the Gateway that a reference of
// a route of a namespace leads to; false if it leads to something else.
func parentGateway(namespace string, ref gatewayv1.ParentReference) (ns, name string, ok bool) {
	if ref.Kind != nil && *ref.Kind != "Gateway" || ref.Group != nil && *ref.Group != group {
		return "", "", false
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	return namespace, string(ref.Name), true
}

// routeKindsOf returns the kinds of routes that a listener takes, and those that
// it asks for and that do not exist.
func routeKindsOf(l gatewayv1.Listener) (kinds []gatewayv1.RouteGroupKind, unknown []string) {
	g := gatewayv1.Group(group)
	kinds = []gatewayv1.RouteGroupKind{}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		for _, kind := range slices.Sorted(maps.Keys(routeResources())) {
			kinds = append(kinds, gatewayv1.RouteGroupKind{Group: &g, Kind: gatewayv1.Kind(kind)})
		}
		return kinds, nil
	}
	for _, k := range l.AllowedRoutes.Kinds {
		if _, ok := routeResources()[string(k.Kind)]; ok && (k.Group == nil || *k.Group == g) {
			kinds = append(kinds, gatewayv1.RouteGroupKind{Group: &g, Kind: k.Kind})
		} else {
			unknown = append(unknown, string(k.Kind))
		}
	}
	return kinds, unknown
}

// attached counts the routes that name the Gateway, or that listener of it, and
// that the listener lets in.
func attached(in Inputs, l gatewayv1.Listener, kinds []gatewayv1.RouteGroupKind) (n int32) {
	for _, r := range in.Routes {
		taken := slices.ContainsFunc(kinds, func(k gatewayv1.RouteGroupKind) bool { return string(k.Kind) == r.Kind })
		if taken && admitted(in, l, r.Namespace) && slices.ContainsFunc(r.Parents, func(ref gatewayv1.ParentReference) bool {
			return selects(in.Gateway, l, r.Namespace, ref)
		}) {
			n++
		}
	}
	return n
}

func selects(gw *gatewayv1.Gateway, l gatewayv1.Listener, namespace string, ref gatewayv1.ParentReference) bool {
	ns, name, ok := parentGateway(namespace, ref)
	return ok && ns == gw.Namespace && name == gw.Name &&
		(ref.SectionName == nil || *ref.SectionName == l.Name) && (ref.Port == nil || *ref.Port == l.Port)
}

// admitted reports whether a listener lets routes of a namespace in.
func admitted(in Inputs, l gatewayv1.Listener, namespace string) bool {
	from := gatewayv1.NamespacesFromSame
	var selector *metav1.LabelSelector
	if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil {
		selector = l.AllowedRoutes.Namespaces.Selector
		if f := l.AllowedRoutes.Namespaces.From; f != nil {
			from = *f
		}
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == in.Gateway.Namespace
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || in.Labels == nil {
			return false
		}
		l := in.Labels(namespace)
		return l != nil && s.Matches(labels.Set(l))
	}
	return false
}
