package gateway

import (
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

// DefaultImage is the waypoint's image where Options names none.
const DefaultImage = "culvert/waypoint"

const (
	portStats      = 15090
	tokenLifetime  = 43200 // seconds
	proxyUID       = 1337
	rootConfigMap  = "istio-ca-root-cert"
	startupRetries = 30
)

// Gateway is what a deployment needs to know of a Gateway API Gateway.
type Gateway struct {
	Namespace   string
	Name        string
	UID         string
	Class       string            // spec.gatewayClassName
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
	Image      string // "" = DefaultImage
	Replicas   int32  // 0 = 1
	Domain     string // "" = cluster.local
	Network    string // topology.istio.io/network of the pods, if any
	XDSAddress string // "" = istiod.istio-system.svc:15012
}

// Objects are what runs a Gateway. Apply the ServiceAccount first.
type Objects struct {
	ServiceAccount *corev1.ServiceAccount
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
	return &Objects{
		ServiceAccount: &corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: g.meta()},
		Deployment:     g.deployment(o),
		Service:        g.service(),
	}, nil
}

func typeMeta(version, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: kind}
}

// meta is the metadata that the three objects share.
func (g Gateway) meta() metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Namespace:   g.Namespace,
		Name:        g.Name,
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
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: g.meta(),
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &dual, Selector: g.selector(), Ports: ports},
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[AnnotationTraffic] = "PreferClose"
	return s
}
