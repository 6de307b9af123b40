// Package compile says what one object means for the mesh. Each function is
// pure: what it needs besides the object it asks of a View, and the View notes
// what was asked, so that model knows which results a change touches.
//
//	Pod                  → mesh.Workload (and, behind a waypoint, its Destination)
//	Service              → mesh.Service, and per port a Destination, routes and clusters for its waypoint
//	ServiceEntry         → mesh.Services, one a host, as for a Service; mesh.Workloads, one an endpoint
//	WorkloadEntry        → mesh.Workload
//	EndpointSlice        → mesh.Workloads, one an address that is no pod's
//	AuthorizationPolicy  → mesh.Policy
//	PeerAuthentication   → mesh.Policy
//	NetworkPolicy        → mesh.Policy, one for each set of them that isolates pods (Mesh.NetworkPolicies)
//	Gateway, HTTPRoute   → conditions; their effect is part of the Services they name
//	GRPCRoute            → as an HTTPRoute whose paths are services and methods
//
// # What cannot be enforced
//
// Nothing is enforced by half. A rule that ztunnel cannot check (it names a path,
// a method …) is left out of an ALLOW policy, which then allows less, and matches
// whatever its remaining part matches in a DENY policy, which then denies more;
// a condition says so. A policy that as a whole cannot be understood denies
// everything that it selects.
//
// # Only the waypoint may reach me
//
// A pod behind a waypoint can still be reached around it by whoever dials the
// pod's address from outside the mesh's reach. The annotation
// "culvert.dev/waypoint-only": "true" on a Gateway closes that: every workload
// behind that waypoint then denies all peers but the waypoint itself. It is a
// choice to be made per waypoint (opt-in), because it also shuts out monitoring
// that scrapes pods directly and clients that are not in the mesh.
package compile

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
)

// Labels and annotations that users set.
const (
	LabelUseWaypoint          = "istio.io/use-waypoint"
	LabelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	LabelWaypointFor          = "istio.io/waypoint-for"
	LabelNetwork              = "topology.istio.io/network"
	AnnotationRedirection     = "ambient.istio.io/redirection"
	AnnotationTraffic         = "networking.istio.io/traffic-distribution"
	AnnotationExportTo        = "networking.istio.io/exportTo"
	AnnotationDryRun          = "istio.io/dry-run"
	AnnotationWaypointOnly    = "culvert.dev/waypoint-only"
	AnnotationServiceAccount  = "gateway.istio.io/service-account" // on a Gateway: what its pods run as
	LabelTunnelProtocol       = "networking.istio.io/tunnel"
)

// Mesh is the installation's settings.
type Mesh struct {
	TrustDomain   string       // "" = cluster.local
	ClusterDomain string       // "" = cluster.local
	Cluster       mesh.Cluster // "" = Kubernetes
	Network       mesh.Network
	RootNamespace string // of mesh-wide policies; "" = istio-system

	NetworkPolicies bool // ztunnels hold tunnels to the NetworkPolicies of the pods where they end
}

// WithDefaults returns m with empty fields filled in.
func (m Mesh) WithDefaults() Mesh {
	if m.TrustDomain == "" {
		m.TrustDomain = mesh.DefaultTrustDomain
	}
	if m.ClusterDomain == "" {
		m.ClusterDomain = mesh.DefaultClusterDomain
	}
	if m.Cluster == "" {
		m.Cluster = mesh.DefaultCluster
	}
	if m.RootNamespace == "" {
		m.RootNamespace = "istio-system"
	}
	return m
}

func (m Mesh) hostname(namespace, service string) string {
	return service + "." + namespace + ".svc." + m.ClusterDomain
}

// serviceOf is hostname's reverse.
func (m Mesh) serviceOf(host string) (name, namespace string, ok bool) {
	rest, ok := strings.CutSuffix(host, ".svc."+m.ClusterDomain)
	if !ok {
		return "", "", false
	}
	name, namespace, ok = strings.Cut(rest, ".")
	return name, namespace, ok && !strings.Contains(namespace, ".")
}

// View is what a compilation may look at. Everything asked is remembered.
type View interface {
	// Get returns the object, or nil.
	Get(key source.Key) source.Object
	// List returns the objects of a namespace ("" = of all) that match accepts, by
	// name. match must be pure and depend only on its argument and on the object
	// being compiled.
	List(kind source.Kind, namespace string, match func(source.Object) bool) []source.Object
	// Names is List for who uses the names alone: a change of an object that is
	// accepted before and after it is no change to him. match must not tell two
	// versions apart that SelectsSame does not.
	Names(kind source.Kind, namespace string, match func(source.Object) bool) []source.Key
}

// Gateway names a waypoint.
type Gateway struct {
	Namespace string
	Name      string
}

// Serving is what a waypoint serves on behalf of one object.
type Serving struct {
	Gateway     Gateway
	Name        string // of the Destination
	Destination *waypointpb.Destination
	Routes      []*routev3.RouteConfiguration
	Clusters    []*clusterv3.Cluster
}

// Output is what one object means.
type Output struct {
	Workloads  []*mesh.Workload
	Services   []*mesh.Service
	Policies   []*mesh.Policy
	Serving    []Serving
	Addresses  []source.HostAddress // that a ServiceEntry's hosts have, to be kept in its status
	Conditions []Condition
}

// Condition is one finding about an object, in the manner of Kubernetes status
// conditions.
type Condition struct {
	Object  string        `json:"object"` // source.Key.String
	Type    string        `json:"type"`   // one of the condition types below
	Status  bool          `json:"status"`
	Reason  reason.Reason `json:"reason,omitempty"` // when not Status
	Field   string        `json:"field,omitempty"`
	Message string        `json:"message,omitempty"`
	File    string        `json:"file,omitempty"`
	Line    int           `json:"line,omitempty"`

	Code       string `json:"code,omitempty"`       // the reason in Kubernetes' spelling, where Type and Reason leave it open
	Partial    bool   `json:"partial,omitempty"`    // not in effect is what Field says; the rest of the object is
	Generation int64  `json:"generation,omitempty"` // of the object that was judged; 0 when unknown
}

// Compile returns what o means in the mesh that v shows.
func Compile(m Mesh, v View, o source.Object) Output {
	c := &compilation{mesh: m, view: v, object: o}
	switch o := o.(type) {
	case *source.Pod:
		c.pod(o)
	case *source.Service:
		c.service(o)
	case *source.AuthorizationPolicy:
		c.authorization(o)
	case *source.PeerAuthentication:
		c.peerAuthentication(o)
	case *source.NetworkPolicy:
		c.networkPolicy(o)
	case *source.Gateway:
		c.gateway(o)
	case *source.HTTPRoute, *source.GRPCRoute:
		c.route(routeOf(o))
	case *source.ServiceEntry:
		c.serviceEntry(o)
	case *source.WorkloadEntry:
		c.workloadEntry(o)
	case *source.EndpointSlice:
		c.endpointSlice(o)
	}
	return c.out
}

// compilation is one run of Compile.
type compilation struct {
	mesh   Mesh
	view   View
	object source.Object
	out    Output
}

// ok notes that the object is fine in one respect.
func (c *compilation) ok(kind string) {
	c.out.Conditions = append(c.out.Conditions, Condition{Object: c.object.Key().String(), Type: kind, Status: true, Generation: c.object.Metadata().Generation})
}

// bad notes that the object is not.
func (c *compilation) bad(kind string, r reason.Reason, field, message string) {
	c.out.Conditions = append(c.out.Conditions, condition(c.object, kind, r, field, message))
}

func condition(o source.Object, kind string, r reason.Reason, field, message string) Condition {
	file, line := o.Metadata().Where(field)
	return Condition{Object: o.Key().String(), Type: kind, Reason: r, Field: field, Message: message, File: file, Line: line,
		Generation: o.Metadata().Generation}
}

// settled notes that the object is fine in one respect unless bad said otherwise.
func (c *compilation) settled(kind string) {
	for _, cond := range c.out.Conditions {
		if cond.Type == kind {
			return
		}
	}
	c.ok(kind)
}

// selects reports whether labels has every pair of selector.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
