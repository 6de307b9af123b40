package gateway

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Gateway classes that are deployed as waypoints.
const (
	ClassIstioWaypoint   = "istio-waypoint"
	ClassCulvertWaypoint = "culvert-waypoint"
)

// Labels and values of rendered objects.
const (
	LabelGatewayName       = "gateway.networking.k8s.io/gateway-name"
	LabelGatewayClass      = "gateway.networking.k8s.io/gateway-class-name"
	LabelManaged           = "gateway.istio.io/managed"
	LabelCanonicalName     = "service.istio.io/canonical-name"
	LabelCanonicalRevision = "service.istio.io/canonical-revision"
	LabelInject            = "sidecar.istio.io/inject"
	LabelDataplaneMode     = "istio.io/dataplane-mode"
	LabelNetwork           = "topology.istio.io/network"
	ManagedMesh            = "istio.io-mesh-controller"
	AnnotationTraffic      = "networking.istio.io/traffic-distribution"
)

// What a user writes on a Gateway, beside its spec.
const (
	AnnotationServiceType    = "networking.istio.io/service-type"    // ClusterIP, NodePort or LoadBalancer
	AnnotationNameOverride   = "gateway.istio.io/name-override"      // name of the Deployment and the Service
	AnnotationServiceAccount = "gateway.istio.io/service-account"    // an account that is there, to run as
	LabelDefaultsForClass    = "gateway.istio.io/defaults-for-class" // on a ConfigMap: parameters of all Gateways of a class
	LabelRevision            = "istio.io/rev"                        // on a Gateway or its namespace: which control plane is to run it
	LabelWaypointFor         = "istio.io/waypoint-for"
)

// DefaultImage is the waypoint's image where Options names none: on one machine
// it stands for the program at hand.
const DefaultImage = "culvert/waypoint"

const (
	containerName  = "istio-proxy"
	portStats      = 15090
	tokenLifetime  = 43200 // seconds
	proxyUID       = 1337
	rootConfigMap  = "istio-ca-root-cert"
	startupRetries = 30
	gracePeriod    = 30 // seconds; the waypoint drains in all but the last of them
)

// Gateway is what a deployment needs to know of a Gateway API Gateway.
type Gateway struct {
	Namespace   string
	Name        string
	UID         string
	Class       string            // spec.gatewayClassName
	Deployed    string            // name of the Deployment and the Service; "" = Name
	Account     string            // a ServiceAccount that somebody else makes; "" = one of its own, named like it
	ServiceType string            // "" = ClusterIP
	Address     string            // that a LoadBalancer is asked for
	Labels      map[string]string // spec.infrastructure.labels
	Annotations map[string]string // spec.infrastructure.annotations
	Listeners   []Listener
}

// Listener is one listener of a Gateway.
type Listener struct {
	Name     string
	Port     uint16
	Protocol string // "HBONE", "HTTP", …
}

// Options are the installation's choices.
type Options struct {
	Image       string // "" = DefaultImage
	Replicas    int32  // 0 = 1; MakePlan leaves the number to whoever scales
	Domain      string // of the cluster; "" = cluster.local
	TrustDomain string // "" = cluster.local
	Cluster     string // name of the cluster; "" = Kubernetes
	Network     string // topology.istio.io/network of the pods, if any
	XDSAddress  string // "" = istiod.istio-system.svc:15012
	CAAddress   string // "" = XDSAddress
	LogFormat   string // "plain" or "json"; "" = plain
	MinDrain    string // how long a waypoint that ends still accepts tunnels, such as "5s"; "" = not at all

	// For MakePlan.
	Revision      string // whose Gateways these are: "" and "default" = those that name none
	RootNamespace string // where the parameters of a whole class are
}

// Objects are what runs a Gateway. Apply the ServiceAccount first.
type Objects struct {
	ServiceAccount *corev1.ServiceAccount // nil when somebody else makes it
	Deployment     *appsv1.Deployment
	Service        *corev1.Service
}

// Managed reports whether Gateways of that class are deployed by Render.
func Managed(class string) bool {
	return class == ClassIstioWaypoint || class == ClassCulvertWaypoint
}

// Render returns the objects that run g, all named like it and in its
// namespace. It returns an error with reason.Unsupported for a class that is not
// a waypoint's and with reason.MissingField for a Gateway without listeners.
func Render(g Gateway, o Options) (*Objects, error) {
	if !Managed(g.Class) {
		return nil, reason.Newf(reason.Unsupported, "render gateway", g.Namespace+"/"+g.Name, "spec.gatewayClassName %q", g.Class)
	}
	if len(g.Listeners) == 0 {
		return nil, reason.Newf(reason.MissingField, "render gateway", g.Namespace+"/"+g.Name, "spec.listeners")
	}
	return g.objects(o), nil
}

func (g Gateway) objects(o Options) *Objects {
	out := &Objects{Deployment: g.deployment(o), Service: g.service()}
	if g.Account == "" {
		out.ServiceAccount = &corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: g.meta(g.account())}
	}
	return out
}

// deployed is the name of the Deployment and the Service.
func (g Gateway) deployed() string { return cmp.Or(g.Deployed, g.Name) }

// account is the name of the ServiceAccount.
func (g Gateway) account() string { return cmp.Or(g.Account, g.Name) }

func typeMeta(version, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: kind}
}

// meta is the metadata of an object of that name.
func (g Gateway) meta(name string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Namespace:   g.Namespace,
		Name:        name,
		Labels:      g.labels(),
		Annotations: maps.Clone(g.Annotations),
	}
	if g.UID != "" {
		m.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: g.Name, UID: typesUID(g.UID),
		}}
	}
	return m
}

func (g Gateway) labels() map[string]string {
	l := maps.Clone(g.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[LabelGatewayName] = g.Name
	l[LabelGatewayClass] = g.Class
	l[LabelManaged] = ManagedMesh
	return l
}

func (g Gateway) selector() map[string]string { return map[string]string{LabelGatewayName: g.Name} }

func (g Gateway) service() *corev1.Service {
	dual := corev1.IPFamilyPolicyPreferDualStack
	tcp := "tcp"
	ports := []corev1.ServicePort{{
		Name: "status-port", Port: mesh.PortReady, TargetPort: intstr.FromInt32(mesh.PortReady),
		Protocol: corev1.ProtocolTCP, AppProtocol: &tcp,
	}}
	for _, l := range g.Listeners {
		app := strings.ToLower(l.Protocol)
		p := corev1.ServicePort{Name: l.Name, Port: int32(l.Port), TargetPort: intstr.FromInt32(int32(l.Port)),
			Protocol: corev1.ProtocolTCP, AppProtocol: &app}
		if !slices.ContainsFunc(ports, func(q corev1.ServicePort) bool { return q.Port == p.Port }) {
			ports = append(ports, p)
		}
	}
	s := &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: g.meta(g.deployed()),
		Spec: corev1.ServiceSpec{Type: corev1.ServiceType(cmp.Or(g.ServiceType, string(corev1.ServiceTypeClusterIP))), IPFamilyPolicy: &dual, Selector: g.selector(), Ports: ports},
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	if s.Annotations[AnnotationTraffic] == "" {
		s.Annotations[AnnotationTraffic] = "PreferClose"
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.Spec.LoadBalancerIP = g.Address
	}
	return s
}
