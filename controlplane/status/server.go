package status

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// resource is a kind of object that has a status of ours.
type resource struct {
	group   schema.GroupVersion
	name    string
	manager string // the name under which our fields are managed
}

var (
	istioNetworking = schema.GroupVersion{Group: "networking.istio.io", Version: "v1"}
	istioSecurity   = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}
	gatewayAPI      = schema.GroupVersion{Group: "gateway.networking.k8s.io", Version: "v1"}
)

// resources are the kinds whose status is written here. A Gateway's is written by
// whoever deploys it.
var resources = map[source.Kind]resource{
	source.KindService:             {schema.GroupVersion{Version: "v1"}, "services", "istio-ambient-service"},
	source.KindServiceEntry:        {istioNetworking, "serviceentries", "istio-ambient-service"},
	source.KindWorkloadEntry:       {istioNetworking, "workloadentries", "istio-ambient-workloadentry"},
	source.KindAuthorizationPolicy: {istioSecurity, "authorizationpolicies", "istio-ambient-ztunnel-policy"},
	source.KindPeerAuthentication:  {istioSecurity, "peerauthentications", "istio-ambient-ztunnel-policy"},
	source.KindHTTPRoute:           {gatewayAPI, "httproutes", "istio-ambient-route"},
	source.KindGRPCRoute:           {gatewayAPI, "grpcroutes", "istio-ambient-route"},
}

// waypointManager manages the fields of policies for waypoints.
const waypointManager = "istio-ambient-waypoint-policy"

// manager returns the name under which the status of an object is written.
func (r resource) managerOf(s *Seen) string {
	if len(s.targets()) > 0 {
		return waypointManager
	}
	return r.manager
}

// Requests of a Writer: a cluster whose every object changes its status at once
// must not be felt by its API server.
const (
	writesPerSecond = 50
	writesAtOnce    = 100
)

// Server is an API server. It implements API.
type Server struct {
	clients map[source.Kind]rest.Interface
	klogger klog.Logger
}

// NewServer returns a Server that asks nothing yet.
func NewServer(config *rest.Config, log *slog.Logger) (*Server, error) {
	s := &Server{clients: map[source.Kind]rest.Interface{}, klogger: logr.FromSlogHandler(log.Handler())}
	scheme := runtime.NewScheme()
	for kind, r := range resources {
		scheme.AddKnownTypeWithName(r.group.WithKind(string(kind)), &Seen{})
		scheme.AddKnownTypeWithName(r.group.WithKind(string(kind)+"List"), &seenList{})
		metav1.AddToGroupVersion(scheme, r.group)
	}
	config = rest.CopyConfig(config)
	config.RateLimiter, config.QPS, config.Burst = nil, writesPerSecond, writesAtOnce
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	for kind, r := range resources {
		config.GroupVersion, config.APIPath = &r.group, "/apis"
		if r.group.Group == "" {
			config.APIPath = "/api"
		}
		if s.clients[kind], err = rest.RESTClientForConfigAndClient(config, http); err != nil {
			return nil, fmt.Errorf("kubernetes client of %s: %w", r.name, err)
		}
	}
	return s, nil
}

// Watch implements API.
func (s *Server) Watch(ctx context.Context, kind source.Kind, store cache.ReflectorStore) {
	name := resources[kind].name
	lw := cache.NewListWatchFromClient(s.clients[kind], name, metav1.NamespaceAll, fields.Everything())
	logger := s.klogger
	cache.NewReflectorWithOptions(lw, &Seen{}, store, cache.ReflectorOptions{Name: "status of " + name, TypeDescription: name, Logger: &logger}).
		RunWithContext(klog.NewContext(ctx, s.klogger))
}

// Patch implements API.
func (s *Server) Patch(ctx context.Context, kind source.Kind, seen *Seen, patch []byte) (*Seen, error) {
	r := resources[kind]
	out := &Seen{}
	err := s.clients[kind].Patch(types.MergePatchType).Namespace(seen.Namespace).Resource(r.name).Name(seen.Name).SubResource("status").
		Param("fieldManager", r.managerOf(seen)).Body(patch).Do(ctx).Into(out)
	return out, err
}

// DeepCopyObject implements runtime.Object. What is inside is never changed.
func (s *Seen) DeepCopyObject() runtime.Object {
	out := *s
	return &out
}

// seenList is a list of them.
type seenList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Seen `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *seenList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}
