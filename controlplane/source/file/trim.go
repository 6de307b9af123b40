package file

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/trim"
)

func toNamespace(_ *corev1.Namespace, m source.Meta) (source.Object, []fault) {
	return trim.Namespace(m), nil
}

func toNode(_ *corev1.Node, m source.Meta) (source.Object, []fault) { return trim.Node(m), nil }

func toPod(p *corev1.Pod, m source.Meta) (source.Object, []fault) {
	out := trim.Pod(p, m)
	return out, enum("status.phase", out.Phase, "", "Pending", "Running", "Succeeded", "Failed", "Unknown")
}

func toService(s *corev1.Service, m source.Meta) (source.Object, []fault) {
	out := trim.Service(s, m)
	faults := enum("spec.type", out.Type, "ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
	for i, p := range out.Ports {
		faults = append(faults, enum(fmt.Sprintf("spec.ports[%d].protocol", i), p.Protocol, "TCP", "UDP", "SCTP")...)
	}
	return out, faults
}

func toNetworkPolicy(p *networkingv1.NetworkPolicy, m source.Meta) (source.Object, []fault) {
	return trim.NetworkPolicy(p, m), nil
}

func toGateway(g *gatewayv1.Gateway, m source.Meta) (source.Object, []fault) {
	return trim.Gateway(g, m), nil
}

func toReferenceGrant(g *gatewayv1.ReferenceGrant, m source.Meta) (source.Object, []fault) {
	return trim.ReferenceGrant(g, m), nil
}

func toEndpointSlice(s *discoveryv1.EndpointSlice, m source.Meta) (source.Object, []fault) {
	if m.Labels[discoveryv1.LabelManagedBy] == trim.OfPods {
		return nil, nil
	}
	return trim.EndpointSlice(s, m), enum("addressType", string(s.AddressType), "IPv4", "IPv6", "FQDN")
}

func toHTTPRoute(r *gatewayv1.HTTPRoute, m source.Meta) (source.Object, []fault) {
	var faults []fault
	for i, rule := range r.Spec.Rules {
		for j, match := range rule.Matches {
			at := fmt.Sprintf("spec.rules[%d].matches[%d]", i, j)
			faults = append(faults, matchEnums(at, match)...)
		}
		for j, f := range rule.Filters {
			at := fmt.Sprintf("spec.rules[%d].filters[%d].type", i, j)
			faults = append(faults, enum(at, string(f.Type), "RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror",
				"RequestRedirect", "URLRewrite", "ExtensionRef", "CORS", "ExternalAuth")...)
		}
	}
	return trim.HTTPRoute(r, m), faults
}

func matchEnums(at string, m gatewayv1.HTTPRouteMatch) []fault {
	var faults []fault
	if m.Path != nil && m.Path.Type != nil {
		faults = append(faults, enum(at+".path.type", string(*m.Path.Type), "Exact", "PathPrefix", "RegularExpression")...)
	}
	if m.Method != nil {
		faults = append(faults, enum(at+".method", string(*m.Method), "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")...)
	}
	for i, h := range m.Headers {
		if h.Type != nil {
			faults = append(faults, enum(fmt.Sprintf("%s.headers[%d].type", at, i), string(*h.Type), "Exact", "RegularExpression")...)
		}
	}
	for i, q := range m.QueryParams {
		if q.Type != nil {
			faults = append(faults, enum(fmt.Sprintf("%s.queryParams[%d].type", at, i), string(*q.Type), "Exact", "RegularExpression")...)
		}
	}
	return faults
}

// enum reports a value that is none of those allowed.
func enum(field, value string, allowed ...string) []fault {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return []fault{{field: field, text: fmt.Sprintf("must be one of %v, is %q", allowed, value)}}
}
