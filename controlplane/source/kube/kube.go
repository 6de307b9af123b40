// Package kube is the source of objects that live in a Kubernetes API server.
//
//	API server ── watch, one per kind ──▶ reflector ──▶ store ─ trims, compares ─▶ queue ──▶ handle(Update)
//	               pods, services, …                      holds trimmed objects       │
//	               nodes, namespaces: metadata only                                   └ changes gather here
//	               custom resources: while they are defined                             only while handle runs
//
// There is no timer between a change and its handling. What changes while an
// update is handled is gathered, each object once, and handled next, so a busy
// cluster costs bigger updates and not more of them. An object that changes in
// what the control plane does not read is no change. While the API server is away
// everything stays as it was.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	clientmeta "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Source watches an API server. It implements source.Source.
type Source struct {
	log     *slog.Logger
	config  *rest.Config
	scheme  *runtime.Scheme
	bare    clientmeta.Interface
	queue   *queue
	klogger klog.Logger
	asked   []source.Kind // of those kinds that not everybody wants

	mu      sync.Mutex
	running map[string]func() // by kind: stops it and drops its objects
}

// New returns a Source that asks nothing before Run. NetworkPolicies it reads only
// when asked names their kind.
func New(config *rest.Config, log *slog.Logger, asked ...source.Kind) (*Source, error) {
	bare, err := clientmeta.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	s := &Source{log: log, config: config, bare: bare, running: map[string]func(){}, asked: asked, klogger: logr.FromSlogHandler(log.Handler())}
	if s.scheme, err = newScheme(); err != nil {
		return nil, err
	}
	s.queue = newQueue(definitions)
	for _, k := range s.always() {
		s.queue.awaits(k.name)
	}
	return s, nil
}

// newScheme knows the types of every kind.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("kubernetes types: %w", err)
	}
	if err := gatewayv1.Install(s); err != nil {
		return nil, fmt.Errorf("gateway types: %w", err)
	}
	for gv, names := range map[schema.GroupVersion][]string{
		istioGV:   {"AuthorizationPolicy", "PeerAuthentication"},
		networkGV: {"ServiceEntry", "WorkloadEntry"},
	} {
		for _, name := range names {
			s.AddKnownTypeWithName(gv.WithKind(name), &custom{})
			s.AddKnownTypeWithName(gv.WithKind(name+"List"), &customList{})
		}
		metav1.AddToGroupVersion(s, gv)
	}
	return s, nil
}

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, handle func(source.Update)) error {
	ctx = klog.NewContext(ctx, s.klogger)
	var g run.Group
	for _, k := range s.always() {
		g.Add("watch "+k.name, func(ctx context.Context) error { return s.watch(ctx, k, newStore(k, s.queue)) })
	}
	g.Add("watch definitions", s.watchDefinitions)
	g.Add("changes", func(ctx context.Context) error { return s.hand(ctx, handle) })
	return g.Run(ctx)
}

// always are the kinds that are there whatever is defined.
func (s *Source) always() []kind {
	return slices.DeleteFunc(kinds(), func(k kind) bool {
		return k.optional || k.asked && !slices.Contains(s.asked, k.key)
	})
}

// hand passes on what has gathered, until ctx ends.
func (s *Source) hand(ctx context.Context, handle func(source.Update)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.queue.wake:
		}
		if u, ok := s.queue.take(); ok {
			handle(u)
		}
	}
}

// watch keeps a store current until ctx ends.
func (s *Source) watch(ctx context.Context, k kind, st cache.ReflectorStore) error {
	lw, err := s.listWatch(k)
	if err != nil {
		return err
	}
	logger := s.klogger
	cache.NewReflectorWithOptions(lw, k.sample, st, cache.ReflectorOptions{Name: k.name, TypeDescription: k.name, Logger: &logger}).RunWithContext(ctx)
	return nil
}

func (s *Source) listWatch(k kind) (cache.ListerWatcher, error) {
	if k.bare {
		return s.bareListWatch(k.group.WithResource(k.name)), nil
	}
	c := rest.CopyConfig(s.config)
	c.GroupVersion = &k.group
	c.APIPath = "/apis"
	if k.group.Group == "" {
		c.APIPath = "/api"
	}
	if !k.optional { // custom resources are JSON only
		c.ContentType = runtime.ContentTypeProtobuf
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(s.scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client of %s: %w", k.name, err)
	}
	return cache.NewFilteredListWatchFromClient(client, k.name, metav1.NamespaceAll, func(o *metav1.ListOptions) { o.LabelSelector = k.labels }), nil
}

func (s *Source) bareListWatch(r schema.GroupVersionResource) cache.ListerWatcher {
	c := s.bare.Resource(r)
	return &cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return c.Watch(ctx, o) },
	}
}
