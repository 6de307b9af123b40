package kube

import (
	"fmt"
	"reflect"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// queue gathers what the stores of all kinds have changed since it was last taken.
// What changes more than once meanwhile is in it once.
type queue struct {
	wake chan struct{} // holds one token while there is something to take

	mu       sync.Mutex
	changed  map[source.Key]source.Object // nil: gone
	problems map[source.Key]source.Problem
	told     bool            // problems changed
	behind   map[string]bool // kinds whose first list has not come
}

func newQueue(kinds ...string) *queue {
	q := &queue{wake: make(chan struct{}, 1), changed: map[source.Key]source.Object{},
		problems: map[source.Key]source.Problem{}, behind: map[string]bool{}}
	for _, k := range kinds {
		q.behind[k] = true
	}
	return q
}

// take returns what has changed. ok is false while a first list is awaited, and
// when nothing has.
func (q *queue) take() (u source.Update, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.behind) > 0 {
		return u, false
	}
	for key, obj := range q.changed {
		if obj == nil {
			u.Removed = append(u.Removed, key)
		} else {
			u.Set = append(u.Set, obj)
		}
	}
	ok = len(q.changed) > 0 || q.told
	q.changed = map[source.Key]source.Object{} // not cleared: the first one is of the size of the mesh
	q.told = false
	for _, p := range q.problems {
		u.Problems = append(u.Problems, p)
	}
	return u, ok
}

// arrived notes that a kind's first list is there. The queue is then worth taking
// even when it is empty.
func (q *queue) arrived(kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.behind[kind] {
		delete(q.behind, kind)
		q.told = true
		q.signal()
	}
}

// awaits makes take wait for a kind's first list.
func (q *queue) awaits(kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.behind[kind] = true
}

// awaitsFirst is awaits as long as nothing has been taken: a kind that is defined
// later holds nobody up.
func (q *queue) awaitsFirst(kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.behind) > 0 {
		q.behind[kind] = true
	}
}

func (q *queue) put(key source.Key, obj source.Object) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changed[key] = obj
	q.signal()
}

// judge notes what is wrong with an object; nil is nothing.
func (q *queue) judge(key source.Key, p *source.Problem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	old, had := q.problems[key]
	switch {
	case p == nil && !had, p != nil && had && *p == old:
		return
	case p == nil:
		delete(q.problems, key)
	default:
		q.problems[key] = *p
	}
	q.told = true
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// store takes what a reflector receives of one kind, trims it and queues what is
// new. It keeps the trimmed objects only. Its methods are the reflector's.
type store struct {
	kind  kind
	queue *queue

	mu   sync.Mutex
	held map[source.Key]source.Object
}

var _ cache.TransformingStore = (*store)(nil)

func newStore(k kind, q *queue) *store {
	return &store{kind: k, queue: q, held: map[source.Key]source.Object{}}
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.setLocked(obj)
	return err
}

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	key, err := s.key(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(key)
	return nil
}

// Replace implements cache.ReflectorStore: a list, at the beginning and whenever
// the server cannot tell the difference.
func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	there := make(map[source.Key]bool, len(list))
	for _, obj := range list {
		key, err := s.setLocked(obj)
		if err != nil {
			return err
		}
		there[key] = true
	}
	for key := range s.held {
		if !there[key] {
			s.dropLocked(key)
		}
	}
	s.queue.arrived(s.kind.name)
	return nil
}

// Transformer implements cache.TransformingStore: a first list is gathered
// somewhere else before it is handed over, and should be small there too.
func (s *store) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if m, err := meta.Accessor(obj); err == nil {
			m.SetManagedFields(nil)
			m.SetAnnotations(annotations(m.GetAnnotations()))
		}
		if p, ok := obj.(*corev1.Pod); ok {
			strip(p)
		}
		return obj, nil
	}
}

// Resync implements cache.ReflectorStore. There is nothing to say again.
func (s *store) Resync() error { return nil }

// setLocked takes an object. One that cannot be understood leaves the last one
// that could in its place.
func (s *store) setLocked(obj any) (source.Key, error) {
	key, err := s.key(obj)
	if err != nil {
		return key, err
	}
	next, problem := s.kind.trim(obj)
	if problem != nil {
		problem.Object = key.String()
	}
	s.queue.judge(key, problem)
	if next == nil || equal(s.held[key], next) {
		return key, nil
	}
	s.held[key] = next
	s.queue.put(key, next)
	return key, nil
}

func (s *store) dropLocked(key source.Key) {
	s.queue.judge(key, nil)
	if _, had := s.held[key]; had {
		delete(s.held, key)
		s.queue.put(key, nil)
	}
}

// clear drops everything: the API does not have the kind any more.
func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.held {
		s.dropLocked(key)
	}
}

func (s *store) key(obj any) (source.Key, error) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return source.Key{}, fmt.Errorf("%s: %w", s.kind.name, err)
	}
	return source.Key{Kind: s.kind.key, Namespace: m.GetNamespace(), Name: m.GetName()}, nil
}

// metadata returns what the control plane uses of an object's metadata.
func metadata(m metav1.Object) source.Meta {
	return source.Meta{
		Namespace: m.GetNamespace(), Name: m.GetName(),
		Labels: m.GetLabels(), Annotations: annotations(m.GetAnnotations()), Created: m.GetCreationTimestamp().Time,
		Generation: m.GetGeneration(),
	}
}

// equal reports whether the control plane would see no difference. Most updates
// of pods and nodes are of what it does not read.
func equal(a, b source.Object) bool { return a != nil && reflect.DeepEqual(a, b) }
