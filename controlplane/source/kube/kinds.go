package kube

import (
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/trim"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// kind is one kind of object that is watched.
type kind struct {
	name     string // of the resource, such as "pods"
	group    schema.GroupVersion
	key      source.Kind
	optional bool   // defined by a custom resource definition that may not be there
	asked    bool   // read only if New is told to
	bare     bool   // metadata is all that is read, and all that is asked for
	labels   string // selector of those that are read; "" = all
	sample   runtime.Object
	// trim returns the control plane's object, or what is wrong.
	trim func(obj any) (source.Object, *source.Problem)
}

// definition is the name of the custom resource definition.
func (k kind) definition() string { return k.name + "." + k.group.Group }

var (
	core      = schema.GroupVersion{Version: "v1"}
	gatewayGV = schema.GroupVersion{Group: "gateway.networking.k8s.io", Version: "v1"}
	istioGV   = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}
	networkGV = schema.GroupVersion{Group: "networking.istio.io", Version: "v1"}
	slicesGV  = schema.GroupVersion{Group: "discovery.k8s.io", Version: "v1"}

	policiesGV = schema.GroupVersion{Group: "networking.k8s.io", Version: "v1"}
)

// notOfPods selects the slices that are read.
const notOfPods = discoveryv1.LabelManagedBy + "!=" + trim.OfPods

// kinds is every kind that the control plane reads.
func kinds() []kind {
	return []kind{
		{name: "namespaces", group: core, key: source.KindNamespace, bare: true, sample: &metav1.PartialObjectMetadata{},
			trim: of(func(o *metav1.PartialObjectMetadata, m source.Meta) source.Object { return trim.Namespace(m) })},
		{name: "nodes", group: core, key: source.KindNode, bare: true, sample: &metav1.PartialObjectMetadata{},
			trim: of(func(o *metav1.PartialObjectMetadata, m source.Meta) source.Object { return trim.Node(m) })},
		{name: "pods", group: core, key: source.KindPod, sample: &corev1.Pod{},
			trim: of(func(o *corev1.Pod, m source.Meta) source.Object { return trim.Pod(o, m) })},
		{name: "services", group: core, key: source.KindService, sample: &corev1.Service{},
			trim: of(func(o *corev1.Service, m source.Meta) source.Object { return trim.Service(o, m) })},
		{name: "endpointslices", group: slicesGV, key: source.KindEndpointSlice, labels: notOfPods, sample: &discoveryv1.EndpointSlice{},
			trim: of(func(o *discoveryv1.EndpointSlice, m source.Meta) source.Object { return trim.EndpointSlice(o, m) })},
		{name: "networkpolicies", group: policiesGV, key: source.KindNetworkPolicy, asked: true, sample: &networkingv1.NetworkPolicy{},
			trim: of(func(o *networkingv1.NetworkPolicy, m source.Meta) source.Object { return trim.NetworkPolicy(o, m) })},
		{name: "gateways", group: gatewayGV, key: source.KindGateway, optional: true, sample: &gatewayv1.Gateway{},
			trim: of(func(o *gatewayv1.Gateway, m source.Meta) source.Object { return trim.Gateway(o, m) })},
		{name: "httproutes", group: gatewayGV, key: source.KindHTTPRoute, optional: true, sample: &gatewayv1.HTTPRoute{},
			trim: of(func(o *gatewayv1.HTTPRoute, m source.Meta) source.Object { return trim.HTTPRoute(o, m) })},
		{name: "grpcroutes", group: gatewayGV, key: source.KindGRPCRoute, optional: true, sample: &gatewayv1.GRPCRoute{},
			trim: of(func(o *gatewayv1.GRPCRoute, m source.Meta) source.Object { return trim.GRPCRoute(o, m) })},
		{name: "referencegrants", group: gatewayGV, key: source.KindReferenceGrant, optional: true, sample: &gatewayv1.ReferenceGrant{},
			trim: of(func(o *gatewayv1.ReferenceGrant, m source.Meta) source.Object { return trim.ReferenceGrant(o, m) })},
		{name: "serviceentries", group: networkGV, key: source.KindServiceEntry, optional: true, sample: &custom{}, trim: serviceEntry},
		{name: "workloadentries", group: networkGV, key: source.KindWorkloadEntry, optional: true, sample: &custom{},
			trim: message(func() *networking.WorkloadEntry { return &networking.WorkloadEntry{} },
				func(spec *networking.WorkloadEntry, m source.Meta) source.Object {
					return &source.WorkloadEntry{Meta: m, Spec: spec}
				})},
		{name: "authorizationpolicies", group: istioGV, key: source.KindAuthorizationPolicy, optional: true, sample: &custom{},
			trim: message(func() *security.AuthorizationPolicy { return &security.AuthorizationPolicy{} },
				func(spec *security.AuthorizationPolicy, m source.Meta) source.Object {
					return &source.AuthorizationPolicy{Meta: m, Spec: spec}
				})},
		{name: "peerauthentications", group: istioGV, key: source.KindPeerAuthentication, optional: true, sample: &custom{},
			trim: message(func() *security.PeerAuthentication { return &security.PeerAuthentication{} },
				func(spec *security.PeerAuthentication, m source.Meta) source.Object {
					return &source.PeerAuthentication{Meta: m, Spec: spec}
				})},
	}
}

// of adapts the trimming of a Kubernetes type. The API server has checked it.
func of[T metav1.Object](f func(T, source.Meta) source.Object) func(any) (source.Object, *source.Problem) {
	return func(obj any) (source.Object, *source.Problem) {
		o, ok := obj.(T)
		if !ok {
			return nil, &source.Problem{Reason: reason.Internal, Detail: "the API server sent another type"}
		}
		return f(o, metadata(o)), nil
	}
}

// message adapts a custom resource whose spec is a protobuf message. Fields that
// are newer than we are do no harm; values that we cannot read do.
func message[M proto.Message](empty func() M, f func(M, source.Meta) source.Object) func(any) (source.Object, *source.Problem) {
	return func(obj any) (source.Object, *source.Problem) {
		spec := empty()
		o, problem := unpack(obj, spec, nil)
		if problem != nil {
			return nil, problem
		}
		return f(spec, metadata(o)), nil
	}
}

func serviceEntry(obj any) (source.Object, *source.Problem) {
	spec, status := &networking.ServiceEntry{}, &networking.ServiceEntryStatus{}
	o, problem := unpack(obj, spec, status)
	if problem != nil {
		return nil, problem
	}
	return trim.ServiceEntry(spec, status, metadata(o)), nil
}

// unpack decodes spec and, unless it is nil, status. Of a status that cannot be
// read nothing is used.
func unpack(obj any, spec, status proto.Message) (*custom, *source.Problem) {
	o, ok := obj.(*custom)
	if !ok {
		return nil, &source.Problem{Reason: reason.Internal, Detail: "the API server sent another type"}
	}
	decode := protojson.UnmarshalOptions{DiscardUnknown: true}
	if len(o.Spec) > 0 {
		if err := decode.Unmarshal(o.Spec, spec); err != nil {
			return nil, &source.Problem{Field: "spec", Reason: reason.InvalidValue, Detail: err.Error()}
		}
	}
	if status != nil && len(o.Status) > 0 && decode.Unmarshal(o.Status, status) != nil {
		proto.Reset(status)
	}
	return o, nil
}

// annotations keeps those that mean something to a mesh.
func annotations(all map[string]string) map[string]string {
	var out map[string]string
	for k, v := range all {
		if strings.Contains(k, "istio.io/") || strings.Contains(k, "culvert.dev/") {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// strip leaves of a pod what trim.Pod reads.
func strip(p *corev1.Pod) {
	spec := corev1.PodSpec{
		ServiceAccountName:       p.Spec.ServiceAccountName,
		DeprecatedServiceAccount: p.Spec.DeprecatedServiceAccount,
		NodeName:                 p.Spec.NodeName,
		HostNetwork:              p.Spec.HostNetwork,
	}
	for _, c := range trim.Serving(p) {
		if len(c.Ports) > 0 {
			spec.Containers = append(spec.Containers, corev1.Container{Ports: c.Ports})
		}
	}
	status := corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	p.Spec, p.Status = spec, status
}
