// Package trim makes the control plane's objects of Kubernetes' own, leaving out
// what it does not use.
//
//	corev1.Pod, 8 KB ── Pod ──▶ source.Pod, 0.5 KB
//
// Pure functions: every source gives the same object for the same YAML. The result
// shares strings, maps and slices with what it is made of.
package trim

import (
	"cmp"
	"maps"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Namespace returns the namespace with that metadata. It has the label that the
// API server gives it, its name.
func Namespace(m source.Meta) *source.Namespace {
	m.Labels = maps.Clone(m.Labels)
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[corev1.LabelMetadataName] = m.Name
	return &source.Namespace{Meta: m}
}

// Node returns the node with that metadata.
func Node(m source.Meta) *source.Node { return &source.Node{Meta: m} }

// Pod trims a pod.
func Pod(p *corev1.Pod, m source.Meta) *source.Pod {
	out := &source.Pod{
		Meta:           m,
		UID:            string(p.UID),
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
	for _, c := range Serving(p) {
		for _, port := range c.Ports {
			out.Ports = append(out.Ports, source.ContainerPort{Name: port.Name, Port: port.ContainerPort, Protocol: cmp.Or(string(port.Protocol), "TCP")})
		}
	}
	return out
}

// Serving are a pod's containers that run as long as it does: its init containers
// that are started again and again (native sidecars) are among them.
func Serving(p *corev1.Pod) []corev1.Container {
	all := p.Spec.Containers[:len(p.Spec.Containers):len(p.Spec.Containers)]
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// NetworkPolicy trims a network policy.
func NetworkPolicy(p *networkingv1.NetworkPolicy, m source.Meta) *source.NetworkPolicy {
	return &source.NetworkPolicy{Meta: m, Spec: p.Spec}
}

// Service trims a service.
func Service(s *corev1.Service, m source.Meta) *source.Service {
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
	out.SessionAffinity = string(s.Spec.SessionAffinity)
	if p := s.Spec.IPFamilyPolicy; p != nil {
		out.IPFamilyPolicy = string(*p)
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, servicePort(p))
	}
	return out
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

// Gateway trims a gateway.
func Gateway(g *gatewayv1.Gateway, m source.Meta) *source.Gateway {
	out := &source.Gateway{Meta: m, Spec: g.Spec}
	for _, a := range g.Status.Addresses {
		kind := gatewayv1.IPAddressType
		if a.Type != nil {
			kind = *a.Type
		}
		out.Addresses = append(out.Addresses, source.Address{Type: string(kind), Value: a.Value})
	}
	return out
}

// ReferenceGrant trims a grant.
func ReferenceGrant(g *gatewayv1.ReferenceGrant, m source.Meta) *source.ReferenceGrant {
	return &source.ReferenceGrant{Meta: m, Spec: g.Spec}
}

// HTTPRoute trims a route.
func HTTPRoute(r *gatewayv1.HTTPRoute, m source.Meta) *source.HTTPRoute {
	return &source.HTTPRoute{Meta: m, Spec: r.Spec}
}

// OfPods is who manages the slices that Kubernetes makes of a selector. They are not
// read: what they say is read from the pods, earlier and for less.
const OfPods = "endpointslice-controller.k8s.io"

// EndpointSlice trims a slice.
func EndpointSlice(s *discoveryv1.EndpointSlice, m source.Meta) *source.EndpointSlice {
	out := &source.EndpointSlice{Meta: m}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, source.EndpointPort{Name: value(p.Name), Port: value(p.Port), Protocol: cmp.Or(string(value(p.Protocol)), "TCP")})
	}
	for _, e := range s.Endpoints {
		ep := source.Endpoint{Addresses: e.Addresses, Node: value(e.NodeName), Zone: value(e.Zone), Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
		ep.Serving = ep.Ready
		if e.Conditions.Serving != nil {
			ep.Serving = *e.Conditions.Serving
		}
		if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
			ep.Pod = ref.Name
		}
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}

// ServiceEntry joins a ServiceEntry's parts.
func ServiceEntry(spec *networking.ServiceEntry, status *networking.ServiceEntryStatus, m source.Meta) *source.ServiceEntry {
	out := &source.ServiceEntry{Meta: m, Spec: spec}
	for _, a := range status.GetAddresses() {
		out.Addresses = append(out.Addresses, source.HostAddress{Host: a.GetHost(), Value: a.GetValue()})
	}
	return out
}

// value is what p points at, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
