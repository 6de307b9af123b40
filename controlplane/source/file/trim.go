package file

import (
	"cmp"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

func toNamespace(_ *corev1.Namespace, m source.Meta) (source.Object, []fault) {
	m.Labels = maps.Clone(m.Labels)
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[corev1.LabelMetadataName] = m.Name
	return &source.Namespace{Meta: m}, nil
}

func toNode(_ *corev1.Node, m source.Meta) (source.Object, []fault) {
	return &source.Node{Meta: m}, nil
}

func toPod(p *corev1.Pod, m source.Meta) (source.Object, []fault) {
	out := &source.Pod{
		Meta:           m,
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, p.Spec.DeprecatedServiceAccount, "default"),
		Node:           p.Spec.NodeName,
		HostNetwork:    p.Spec.HostNetwork,
		Phase:          string(p.Status.Phase),
		Terminating:    p.DeletionTimestamp != nil,
	}
	for _, ip := range p.Status.PodIPs {
		out.IPs = append(out.IPs, ip.IP)
	}
	if len(out.IPs) == 0 && p.Status.PodIP != "" {
		out.IPs = []string{p.Status.PodIP}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, o := range p.OwnerReferences {
		if o.Controller != nil && *o.Controller || out.Owner.Name == "" {
			out.Owner = source.Owner{Kind: o.Kind, Name: o.Name}
		}
	}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			out.Ports = append(out.Ports, source.ContainerPort{Name: port.Name, Port: port.ContainerPort, Protocol: cmp.Or(string(port.Protocol), "TCP")})
		}
	}
	return out, enum("status.phase", out.Phase, "", "Pending", "Running", "Succeeded", "Failed", "Unknown")
}

func toService(s *corev1.Service, m source.Meta) (source.Object, []fault) {
	out := &source.Service{
		Meta:            m,
		Type:            cmp.Or(string(s.Spec.Type), "ClusterIP"),
		ClusterIPs:      s.Spec.ClusterIPs,
		Selector:        s.Spec.Selector,
		PublishNotReady: s.Spec.PublishNotReadyAddresses,
	}
	if len(out.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
		out.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		out.InternalLocal = *p == corev1.ServiceInternalTrafficPolicyLocal
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		out.TrafficDistribution = *d
	}
	for _, f := range s.Spec.IPFamilies {
		out.IPFamilies = append(out.IPFamilies, string(f))
	}
	if p := s.Spec.IPFamilyPolicy; p != nil {
		out.IPFamilyPolicy = string(*p)
	}
	faults := enum("spec.type", out.Type, "ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
	for i, p := range s.Spec.Ports {
		port := servicePort(p)
		out.Ports = append(out.Ports, port)
		faults = append(faults, enum(fmt.Sprintf("spec.ports[%d].protocol", i), port.Protocol, "TCP", "UDP", "SCTP")...)
	}
	return out, faults
}

func servicePort(p corev1.ServicePort) source.ServicePort {
	out := source.ServicePort{Name: p.Name, Port: p.Port, Protocol: cmp.Or(string(p.Protocol), "TCP")}
	if p.TargetPort.Type == intstr.String {
		out.TargetName = p.TargetPort.StrVal
	} else {
		out.TargetPort = p.TargetPort.IntVal
	}
	if p.AppProtocol != nil {
		out.AppProtocol = *p.AppProtocol
	}
	return out
}

func toGateway(g *gatewayv1.Gateway, m source.Meta) (source.Object, []fault) {
	out := &source.Gateway{Meta: m, Spec: g.Spec}
	for _, a := range g.Status.Addresses {
		kind := gatewayv1.IPAddressType
		if a.Type != nil {
			kind = *a.Type
		}
		out.Addresses = append(out.Addresses, source.Address{Type: string(kind), Value: a.Value})
	}
	return out, nil
}

func toHTTPRoute(r *gatewayv1.HTTPRoute, m source.Meta) (source.Object, []fault) {
	out := &source.HTTPRoute{Meta: m, Spec: r.Spec}
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
	return out, faults
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
