package trust

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

func (r *round) watchNamespaces(ctx context.Context, client kubernetes.Interface) error {
	all := client.CoreV1().Namespaces()
	lw := &cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return all.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return all.Watch(ctx, o) },
	}
	r.reflect(ctx, "namespaces", &corev1.Namespace{}, lw, client, &store{
		set: func(obj any) error {
			ns, ok := obj.(*corev1.Namespace)
			if !ok {
				return fmt.Errorf("namespaces: got a %T", obj)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.namespaces[ns.Name] = ns.DeletionTimestamp == nil
			r.lookLocked(ns.Name)
			return nil
		},
		keep: func(there map[string]bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			for name := range r.namespaces {
				if !there[name] {
					r.forgetLocked(name)
				}
			}
		},
		drop: func(m metav1.Object) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.forgetLocked(m.GetName())
		},
		id: metav1.Object.GetName,
	})
	return nil
}

func (r *round) forgetLocked(namespace string) {
	delete(r.namespaces, namespace)
	delete(r.written, namespace)
	r.queue.Forget(namespace)
}

func (r *round) watchConfigMaps(ctx context.Context, client kubernetes.Interface) error {
	only := fields.OneTermEqualSelector("metadata.name", Name).String()
	all := client.CoreV1().ConfigMaps(metav1.NamespaceAll)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return all.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return all.Watch(ctx, o)
		},
	}
	r.reflect(ctx, "configmaps", &corev1.ConfigMap{}, lw, client, &store{
		set: func(obj any) error {
			m, ok := obj.(*corev1.ConfigMap)
			if !ok {
				return fmt.Errorf("configmaps: got a %T", obj)
			}
			if m.Name != Name {
				return nil
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.held[m.Namespace] = hashOf(m.Data[Key])
			r.lookLocked(m.Namespace)
			return nil
		},
		keep: func(there map[string]bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			for namespace := range r.held {
				if !there[namespace] {
					delete(r.held, namespace)
				}
			}
			r.listed = true
			r.lookAllLocked()
		},
		drop: func(m metav1.Object) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if m.GetName() == Name {
				delete(r.held, m.GetNamespace())
				r.lookLocked(m.GetNamespace())
			}
		},
		id: metav1.Object.GetNamespace,
	})
	return nil
}

func (r *round) reflect(ctx context.Context, name string, sample any, lw *cache.ListWatch, client kubernetes.Interface, st *store) {
	logger := klog.FromContext(ctx)
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), sample, st,
		cache.ReflectorOptions{Name: "trust " + name, TypeDescription: name, Logger: &logger}).RunWithContext(ctx)
}

// store is what a reflector fills.
type store struct {
	set  func(obj any) error
	keep func(there map[string]bool) // after a list: only these are there, by id
	drop func(m metav1.Object)
	id   func(metav1.Object) string
}

var _ cache.TransformingStore = (*store)(nil)

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.set(obj) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.set(obj) }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m, err := meta.Accessor(obj)
	if err == nil {
		s.drop(m)
	}
	return err
}

// Replace implements cache.ReflectorStore.
func (s *store) Replace(list []any, _ string) error {
	there := make(map[string]bool, len(list))
	for _, obj := range list {
		m, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		there[s.id(m)] = true
		if err := s.set(obj); err != nil {
			return err
		}
	}
	s.keep(there)
	return nil
}

// Transformer implements cache.TransformingStore: a first list is gathered
// somewhere else before it is handed over, and should be small there too.
func (s *store) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if m, err := meta.Accessor(obj); err == nil {
			m.SetManagedFields(nil)
			m.SetAnnotations(nil)
		}
		return obj, nil
	}
}

// Resync implements cache.ReflectorStore. There is nothing to say again.
func (s *store) Resync() error { return nil }
