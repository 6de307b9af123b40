// Package source holds the objects that the control plane reads, trimmed to what
// it uses, and the interface by which they arrive.
//
//	folder of YAML ── source/file ─┐
//	                               ├─► Update{Set, Removed, Problems} ─► model
//	Kubernetes API ── another one ─┘
//
// Objects are immutable once handed over and may be shared by any number of
// goroutines.
package source

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Kind is a kind of object that the control plane reads.
type Kind string

// Kinds.
const (
	KindNamespace           Kind = "Namespace"
	KindNode                Kind = "Node"
	KindPod                 Kind = "Pod"
	KindService             Kind = "Service"
	KindAuthorizationPolicy Kind = "AuthorizationPolicy"
	KindPeerAuthentication  Kind = "PeerAuthentication"
	KindNetworkPolicy       Kind = "NetworkPolicy"
	KindGateway             Kind = "Gateway"
	KindHTTPRoute           Kind = "HTTPRoute"
	KindReferenceGrant      Kind = "ReferenceGrant"
	KindEndpointSlice       Kind = "EndpointSlice"
	KindServiceEntry        Kind = "ServiceEntry"
	KindWorkloadEntry       Kind = "WorkloadEntry"
)

// Key names an object. Namespace is empty for kinds that have none.
type Key struct {
	Kind      Kind
	Namespace string
	Name      string
}

// String returns "Kind/namespace/name", or "Kind/name" without a namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return string(k.Kind) + "/" + k.Name
	}
	return string(k.Kind) + "/" + k.Namespace + "/" + k.Name
}

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// Object is one of the types below, as a pointer.
type Object interface {
	Key() Key
	Metadata() *Meta
}

// Meta is what all objects have.
type Meta struct {
	Namespace   string
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Created     time.Time // zero when unknown
	Generation  int64     // of what was written in spec, counted by the API server; 0 when unknown
	Locate      Locator   // nil when the object was not written in a file
}

// Locator says where a field was written.
type Locator func(field string) (file string, line int)

// Where returns where field was written, or "" and 0.
func (m *Meta) Where(field string) (file string, line int) {
	if m.Locate == nil {
		return "", 0
	}
	return m.Locate(field)
}

// Metadata returns m.
func (m *Meta) Metadata() *Meta { return m }

// Older reports whether m was created before o; names decide between equals.
func (m *Meta) Older(o *Meta) bool {
	return cmp.Or(m.Created.Compare(o.Created), cmp.Compare(m.Namespace, o.Namespace), cmp.Compare(m.Name, o.Name)) < 0
}

// Namespace is a Kubernetes Namespace.
type Namespace struct{ Meta }

// Node is a Kubernetes Node; its labels say where it is.
type Node struct{ Meta }

// Pod is a Kubernetes Pod.
type Pod struct {
	Meta
	UID            string // "" when it was written in a file
	ServiceAccount string
	Node           string
	HostNetwork    bool
	IPs            []string
	Phase          string // "Running", …
	Ready          bool
	Terminating    bool
	Owner          Owner
	Ports          []ContainerPort
}

// Owner is the controller that made a pod.
type Owner struct {
	Kind string
	Name string
}

// ContainerPort is a port that a container names.
type ContainerPort struct {
	Name     string
	Port     int32
	Protocol string // "TCP", "UDP", "SCTP"
}

// Service is a Kubernetes Service.
type Service struct {
	Meta
	Type                string // "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"
	ClusterIPs          []string
	Selector            map[string]string
	Ports               []ServicePort
	PublishNotReady     bool
	InternalLocal       bool   // internalTrafficPolicy: Local
	TrafficDistribution string // "", "PreferClose", …
	IPFamilies          []string
	IPFamilyPolicy      string
	SessionAffinity     string // "", "None", "ClientIP"
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name        string
	Port        int32
	TargetPort  int32  // 0 when TargetName is set, or to mean Port
	TargetName  string // a container port's name
	Protocol    string // "TCP", "UDP", "SCTP"
	AppProtocol string
}

// EndpointSlice lists addresses of a Service. Those that Kubernetes itself makes
// of a selector are not read: the pods are.
type EndpointSlice struct {
	Meta
	Ports     []EndpointPort
	Endpoints []Endpoint
}

// LabelService is the label of an EndpointSlice that names its Service.
const LabelService = "kubernetes.io/service-name"

// EndpointPort is a port that endpoints listen on.
type EndpointPort struct {
	Name     string // of the Service's port
	Port     int32  // 0 = the Service's
	Protocol string // "TCP", "UDP", "SCTP"
}

// Endpoint is one endpoint of a Service.
type Endpoint struct {
	Addresses []string
	Pod       string // that it is, in the slice's namespace; "" = none
	Node      string
	Zone      string
	Ready     bool // or not said
	Serving   bool // or not said: as Ready
}

// ServiceEntry is Istio's.
type ServiceEntry struct {
	Meta
	Spec      *networking.ServiceEntry
	Addresses []HostAddress // status.addresses
}

// HostAddress is an address that was allocated to a host of a ServiceEntry.
type HostAddress struct {
	Host  string
	Value string
}

// WorkloadEntry is Istio's.
type WorkloadEntry struct {
	Meta
	Spec *networking.WorkloadEntry
}

// AuthorizationPolicy is Istio's.
type AuthorizationPolicy struct {
	Meta
	Spec *security.AuthorizationPolicy
}

// PeerAuthentication is Istio's.
type PeerAuthentication struct {
	Meta
	Spec *security.PeerAuthentication
}

// NetworkPolicy is Kubernetes'.
type NetworkPolicy struct {
	Meta
	Spec networkingv1.NetworkPolicySpec
}

// Gateway is the Gateway API's.
type Gateway struct {
	Meta
	Spec      gatewayv1.GatewaySpec
	Addresses []Address // status.addresses
}

// Address is one address that a Gateway is reached by.
type Address struct {
	Type  string // "IPAddress", "Hostname"
	Value string
}

// HTTPRoute is the Gateway API's.
type HTTPRoute struct {
	Meta
	Spec gatewayv1.HTTPRouteSpec
}

// ReferenceGrant is the Gateway API's.
type ReferenceGrant struct {
	Meta
	Spec gatewayv1.ReferenceGrantSpec
}

// Key implements Object.
func (e *EndpointSlice) Key() Key { return Key{KindEndpointSlice, e.Namespace, e.Name} }

// Key implements Object.
func (e *ServiceEntry) Key() Key { return Key{KindServiceEntry, e.Namespace, e.Name} }

// Key implements Object.
func (e *WorkloadEntry) Key() Key { return Key{KindWorkloadEntry, e.Namespace, e.Name} }

// Key implements Object.
func (g *ReferenceGrant) Key() Key { return Key{KindReferenceGrant, g.Namespace, g.Name} }

// Key implements Object.
func (n *Namespace) Key() Key { return Key{KindNamespace, "", n.Name} }

// Key implements Object.
func (n *Node) Key() Key { return Key{KindNode, "", n.Name} }

// Key implements Object.
func (p *Pod) Key() Key { return Key{KindPod, p.Namespace, p.Name} }

// Key implements Object.
func (s *Service) Key() Key { return Key{KindService, s.Namespace, s.Name} }

// Key implements Object.
func (p *AuthorizationPolicy) Key() Key { return Key{KindAuthorizationPolicy, p.Namespace, p.Name} }

// Key implements Object.
func (p *PeerAuthentication) Key() Key { return Key{KindPeerAuthentication, p.Namespace, p.Name} }

// Key implements Object.
func (p *NetworkPolicy) Key() Key { return Key{KindNetworkPolicy, p.Namespace, p.Name} }

// Key implements Object.
func (g *Gateway) Key() Key { return Key{KindGateway, g.Namespace, g.Name} }

// Key implements Object.
func (r *HTTPRoute) Key() Key { return Key{KindHTTPRoute, r.Namespace, r.Name} }

// ParseAddr parses an address of a Pod or Service; ok is false for "", "None"
// and what is no address.
func ParseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil
}

// Problem is one thing wrong with what was written.
type Problem struct {
	Object string        `json:"object,omitempty"` // Key.String, when known
	File   string        `json:"file,omitempty"`
	Line   int           `json:"line,omitempty"`
	Field  string        `json:"field,omitempty"`
	Reason reason.Reason `json:"reason"`
	Detail string        `json:"detail,omitempty"`
}

// Update is a change of the set of objects. The first one of a Source is the
// whole set.
type Update struct {
	Set      []Object  // new or changed
	Removed  []Key     // gone
	Problems []Problem // everything that is wrong at present, not only what is new
	Previous bool      // what an earlier run held good; the present state follows at once
}

// Keeper is a Source that can keep what is good for its next run. Keep is called
// from within Run's handle; good tells whether all of a file is.
type Keeper interface {
	Keep(good func(file string) bool) error
}

// Source yields objects.
type Source interface {
	// Run calls handle with the whole set and then with each change, in order and
	// from one goroutine, until ctx ends.
	Run(ctx context.Context, handle func(Update)) error
}
