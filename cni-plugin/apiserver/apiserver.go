// Package apiserver is the node agent's side of a Kubernetes API server: the pods
// of its node come from there, and how each is redirected is written there.
//
//	pods of this node ────────┐ watched, and reduced to what enroll decides by
//	namespaces (metadata) ────┴──▶ Snapshot{Pods, Namespaces} ──▶ agent
//	                                                               │
//	pods/NAME/status ◀── merge patch of one annotation ────────────┘
//
// While the API server is away the last snapshot stays. A Source is run once; an
// Annotator may be used by any number of goroutines.
package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// coreClient speaks to the API that pods are in.
func coreClient(config *rest.Config) (rest.Interface, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.APIPath = "/api"
	c.ContentType = runtime.ContentTypeProtobuf
	c.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return client, nil
}

// Source follows the pods of one node. It implements podsource.Source.
type Source struct {
	pods       cache.ListerWatcher
	namespaces cache.ListerWatcher
	log        *slog.Logger

	wake chan struct{}
	mu   sync.Mutex
	seen podsource.Snapshot
	here [2]bool // the first lists of pods and of namespaces have come
}

var _ podsource.Source = (*Source)(nil)

// NewSource returns a source of the pods of node. It asks nothing before Run.
func NewSource(config *rest.Config, node string, log *slog.Logger) (*Source, error) {
	client, err := coreClient(config)
	if err != nil {
		return nil, err
	}
	bare, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	namespaces := bare.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	return &Source{
		pods: cache.NewListWatchFromClient(client, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)),
		namespaces: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return namespaces.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return namespaces.Watch(ctx, o)
			},
		},
		log: log, wake: make(chan struct{}, 1),
		seen: podsource.Snapshot{Pods: map[mesh.PodUID]enroll.Pod{}, Namespaces: map[string]enroll.Namespace{}},
	}, nil
}

// Run implements podsource.Source.
func (s *Source) Run(ctx context.Context, handle func(podsource.Snapshot)) error {
	logger := logr.FromSlogHandler(s.log.Handler())
	reflect := func(name string, lw cache.ListerWatcher, sample runtime.Object, st cache.ReflectorStore) func(context.Context) error {
		return func(ctx context.Context) error {
			o := cache.ReflectorOptions{Name: name, TypeDescription: name, Logger: &logger}
			cache.NewReflectorWithOptions(lw, sample, st, o).RunWithContext(klog.NewContext(ctx, logger))
			return nil
		}
	}
	var g run.Group
	g.Add("watch pods", reflect("pods", s.pods, &corev1.Pod{}, &store[mesh.PodUID]{source: s, kind: 0, set: s.setPod, drop: s.dropPod, keys: s.podKeys}))
	g.Add("watch namespaces", reflect("namespaces", s.namespaces, &metav1.PartialObjectMetadata{},
		&store[string]{source: s, kind: 1, set: s.setNamespace, drop: s.dropNamespace, keys: s.namespaceKeys}))
	g.Add("changes", func(ctx context.Context) error { return s.hand(ctx, handle) })
	return g.Run(ctx)
}

// hand passes snapshots on; what changes meanwhile is in the next one.
func (s *Source) hand(ctx context.Context, handle func(podsource.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		if snapshot, ok := s.snapshot(); ok {
			handle(snapshot)
		}
	}
}

func (s *Source) snapshot() (podsource.Snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return podsource.Snapshot{Pods: maps.Clone(s.seen.Pods), Namespaces: maps.Clone(s.seen.Namespaces)}, s.here[0] && s.here[1]
}

func (s *Source) setPod(obj any) (mesh.PodUID, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return "", fmt.Errorf("want a pod, got %T", obj)
	}
	e := podsource.FromPod(p)
	s.seen.Pods[e.UID] = e
	return e.UID, nil
}

func (s *Source) dropPod(obj metav1.Object) { delete(s.seen.Pods, mesh.PodUID(obj.GetUID())) }

func (s *Source) podKeys(there map[mesh.PodUID]bool) {
	maps.DeleteFunc(s.seen.Pods, func(uid mesh.PodUID, _ enroll.Pod) bool { return !there[uid] })
}

func (s *Source) setNamespace(obj any) (string, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return "", err
	}
	s.seen.Namespaces[m.GetName()] = enroll.Namespace{Name: m.GetName(), Labels: m.GetLabels()}
	return m.GetName(), nil
}

func (s *Source) dropNamespace(obj metav1.Object) { delete(s.seen.Namespaces, obj.GetName()) }

func (s *Source) namespaceKeys(there map[string]bool) {
	maps.DeleteFunc(s.seen.Namespaces, func(name string, _ enroll.Namespace) bool { return !there[name] })
}

// store is a reflector's view of one half of the source. Its functions are called
// with the source's lock held.
type store[K comparable] struct {
	source *Source
	kind   int
	set    func(obj any) (K, error)
	drop   func(obj metav1.Object)
	keys   func(there map[K]bool) // keeps only those
}

// Add implements cache.ReflectorStore.
func (s *store[K]) Add(obj any) error {
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	_, err := s.set(obj)
	s.changed()
	return err
}

// Update implements cache.ReflectorStore.
func (s *store[K]) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *store[K]) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	s.drop(m)
	s.changed()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store[K]) Replace(list []any, _ string) error {
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	there := make(map[K]bool, len(list))
	for _, obj := range list {
		key, err := s.set(obj)
		if err != nil {
			return err
		}
		there[key] = true
	}
	s.keys(there)
	s.source.here[s.kind] = true
	s.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store[K]) Resync() error { return nil }

func (s *store[K]) changed() {
	select {
	case s.source.wake <- struct{}{}:
	default:
	}
}
