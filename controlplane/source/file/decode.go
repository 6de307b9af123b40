package file

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	strictjson "sigs.k8s.io/json"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/trim"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// decoder turns a folder's object into a source's. A nil result without
// problems is an object that is good but of no use to the control plane.
type decoder func(o *folder.Object) (source.Object, []fault)

// groupKind names a type of object whatever its version.
type groupKind struct{ group, kind string }

const (
	gatewayGroup    = "gateway.networking.k8s.io"
	securityGroup   = "security.istio.io"
	discoveryGroup  = "discovery.k8s.io"
	networkingGroup = "networking.istio.io"
)

// decoders lists every kind that is understood.
func decoders() map[groupKind]decoder {
	return map[groupKind]decoder{
		{"", "Namespace"}:                      kubernetes(toNamespace),
		{"", "Node"}:                           kubernetes(toNode),
		{"", "Pod"}:                            kubernetes(toPod),
		{"", "Service"}:                        kubernetes(toService),
		{"", "ServiceAccount"}:                 checked[corev1.ServiceAccount](),
		{"", "ConfigMap"}:                      checked[corev1.ConfigMap](),
		{"", "Secret"}:                         checked[corev1.Secret](),
		{"apps", "Deployment"}:                 checked[appsv1.Deployment](),
		{"apps", "ReplicaSet"}:                 checked[appsv1.ReplicaSet](),
		{"apps", "StatefulSet"}:                checked[appsv1.StatefulSet](),
		{"apps", "DaemonSet"}:                  checked[appsv1.DaemonSet](),
		{"batch", "Job"}:                       checked[batchv1.Job](),
		{gatewayGroup, "GatewayClass"}:         checked[gatewayv1.GatewayClass](),
		{gatewayGroup, "Gateway"}:              kubernetes(toGateway),
		{gatewayGroup, "HTTPRoute"}:            kubernetes(toHTTPRoute),
		{gatewayGroup, "GRPCRoute"}:            kubernetes(toGRPCRoute),
		{gatewayGroup, "ReferenceGrant"}:       kubernetes(toReferenceGrant),
		{discoveryGroup, "EndpointSlice"}:      kubernetes(toEndpointSlice),
		{"networking.k8s.io", "NetworkPolicy"}: kubernetes(toNetworkPolicy),
		{networkingGroup, "ServiceEntry"}:      decodeServiceEntry,
		{networkingGroup, "WorkloadEntry"}:     decodeWorkloadEntry,
		{securityGroup, "AuthorizationPolicy"}: decodeAuthorizationPolicy,
		{securityGroup, "PeerAuthentication"}:  decodePeerAuthentication,
	}
}

// kubernetes decodes a Kubernetes type strictly and trims it.
func kubernetes[T any](trim func(*T, source.Meta) (source.Object, []fault)) decoder {
	return func(o *folder.Object) (source.Object, []fault) {
		var v T
		if faults := strict(o, &v); len(faults) > 0 {
			return nil, faults
		}
		m, faults := meta(o)
		if len(faults) > 0 {
			return nil, faults
		}
		return trim(&v, m)
	}
}

// checked only checks: the control plane does not use the kind, but a mistake in
// it should not wait for whoever does.
func checked[T any]() decoder {
	return func(o *folder.Object) (source.Object, []fault) {
		var v T
		return nil, strict(o, &v)
	}
}

func strict(o *folder.Object, v any) []fault {
	c := &checker{}
	c.goType(o.Node, reflect.TypeOf(v).Elem(), "")
	if len(c.faults) > 0 {
		return c.faults
	}
	text, err := o.JSON()
	if err == nil {
		err = strictjson.UnmarshalCaseSensitivePreserveInts(text, v)
	}
	if err != nil {
		return []fault{{text: shorten(err.Error())}}
	}
	return nil
}

// meta decodes the metadata that every object has.
func meta(o *folder.Object) (source.Meta, []fault) {
	var v struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	text, err := o.JSON()
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		return source.Meta{}, []fault{{field: "metadata", text: shorten(err.Error())}}
	}
	return source.Meta{
		Namespace: o.Namespace, Name: o.Name,
		Labels: v.Metadata.Labels, Annotations: v.Metadata.Annotations,
		Created: v.Metadata.CreationTimestamp.Time, Locate: o.Locate,
	}, nil
}

func decodeAuthorizationPolicy(o *folder.Object) (source.Object, []fault) {
	spec := &security.AuthorizationPolicy{}
	m, faults := istio(o, spec)
	return &source.AuthorizationPolicy{Meta: m, Spec: spec}, faults
}

func decodePeerAuthentication(o *folder.Object) (source.Object, []fault) {
	spec := &security.PeerAuthentication{}
	m, faults := istio(o, spec)
	return &source.PeerAuthentication{Meta: m, Spec: spec}, faults
}

func decodeServiceEntry(o *folder.Object) (source.Object, []fault) {
	spec, status := &networking.ServiceEntry{}, &networking.ServiceEntryStatus{}
	m, faults := istio(o, spec)
	if n := field(o.Node, "status"); n != nil && len(faults) == 0 {
		faults = unmarshal(n, status, "status")
	}
	return trim.ServiceEntry(spec, status, m), faults
}

func decodeWorkloadEntry(o *folder.Object) (source.Object, []fault) {
	spec := &networking.WorkloadEntry{}
	m, faults := istio(o, spec)
	return &source.WorkloadEntry{Meta: m, Spec: spec}, faults
}

// field returns the value of an object's field, nil without.
func field(n *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name && !null(n.Content[i+1]) {
			return n.Content[i+1]
		}
	}
	return nil
}

// istio decodes an object whose spec is a protobuf message.
func istio(o *folder.Object, spec proto.Message) (source.Meta, []fault) {
	c := &checker{}
	var specNode *yaml.Node
	for i := 0; i+1 < len(o.Node.Content); i += 2 {
		key, val := o.Node.Content[i].Value, o.Node.Content[i+1]
		switch key {
		case "apiVersion", "kind", "status":
		case "metadata":
			c.goType(val, reflect.TypeFor[metav1.ObjectMeta](), key)
		case "spec":
			specNode = val
			c.message(val, spec.ProtoReflect().Descriptor(), key)
		default:
			c.unknown(key)
		}
	}
	if len(c.faults) > 0 {
		return source.Meta{}, c.faults
	}
	if specNode != nil && !null(specNode) {
		if faults := unmarshal(specNode, spec, "spec"); len(faults) > 0 {
			return source.Meta{}, faults
		}
	}
	return meta(o)
}

func unmarshal(n *yaml.Node, m proto.Message, at string) []fault {
	text, err := jsonText(n)
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		return []fault{{field: at, text: protoText(err)}}
	}
	return nil
}

// protoText removes the JSON position from an error of protojson: it points into
// a text that nobody wrote.
func protoText(err error) string {
	s := strings.TrimPrefix(err.Error(), "proto:")
	s = strings.TrimLeft(s, " \u00a0")
	if rest, ok := strings.CutPrefix(s, "(line "); ok {
		if _, after, ok := strings.Cut(rest, "): "); ok {
			return after
		}
	}
	return s
}

func jsonText(n *yaml.Node) ([]byte, error) {
	return (&folder.Object{Node: n}).JSON()
}

// problem says where a fault was written.
func problem(o *folder.Object, f fault) source.Problem {
	file, line := o.Locate(f.field)
	p := source.Problem{Object: o.Key().String(), File: file, Line: line, Field: f.field, Reason: reason.InvalidValue, Detail: f.text}
	if f.unknown {
		p.Reason = reason.UnknownField
	}
	return p
}

func unsupported(o *folder.Object) source.Problem {
	return source.Problem{Object: o.Key().String(), File: o.File, Line: o.Line, Field: "kind", Reason: reason.Unsupported,
		Detail: fmt.Sprintf("%s %s is ignored", o.APIVersion, o.Kind)}
}
