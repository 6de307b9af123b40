package kube

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// definitions is the resource that says which custom resources there are.
const definitions = "customresourcedefinitions"

// watchDefinitions watches each optional kind while it is defined, until ctx ends.
// The first set of objects is complete when those that are defined at the
// beginning have come.
func (s *Source) watchDefinitions(ctx context.Context) error {
	k := kind{name: definitions, bare: true, sample: &metav1.PartialObjectMetadata{},
		group: schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}}
	d := &defined{source: s, ctx: ctx, optional: map[string]kind{}}
	for _, k := range kinds() {
		if k.optional {
			d.optional[k.definition()] = k
		}
	}
	defer d.done.Wait()
	return s.watch(ctx, k, d)
}

// defined is the reflector's store of definitions.
type defined struct {
	source   *Source
	ctx      context.Context // of everything that it starts
	optional map[string]kind // by the name of the definition
	done     sync.WaitGroup
}

var _ cache.ReflectorStore = (*defined)(nil)

// Add implements cache.ReflectorStore.
func (d *defined) Add(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	if k, ok := d.optional[m.GetName()]; ok {
		d.start(k)
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (d *defined) Update(obj any) error { return d.Add(obj) }

// Delete implements cache.ReflectorStore.
func (d *defined) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	d.stop(m.GetName())
	return nil
}

// Replace implements cache.ReflectorStore.
func (d *defined) Replace(list []any, _ string) error {
	there := map[string]bool{}
	for _, obj := range list {
		m, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		there[m.GetName()] = true
		if err := d.Add(obj); err != nil {
			return err
		}
	}
	for name := range d.optional {
		if !there[name] {
			d.stop(name)
		}
	}
	d.source.queue.arrived(definitions)
	return nil
}

// Resync implements cache.ReflectorStore.
func (d *defined) Resync() error { return nil }

// start watches a kind, unless it is watched.
func (d *defined) start(k kind) {
	s := d.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[k.definition()] != nil {
		return
	}
	s.queue.awaitsFirst(k.name)
	ctx, cancel := context.WithCancel(d.ctx)
	st := newStore(k, s.queue)
	ended := make(chan struct{})
	s.running[k.definition()] = func() {
		cancel()
		<-ended
		st.clear()
		s.queue.arrived(k.name) // if it never came, it will not
	}
	d.done.Add(1)
	go func() {
		defer d.done.Done()
		defer close(ended)
		if err := s.watch(ctx, k, st); err != nil {
			s.log.Error("kind is not watched", "kind", k.name, "error", err)
		}
	}()
	s.log.Info("kind is defined", "kind", k.definition())
}

// stop ends the watching of a kind that is not defined any more.
func (d *defined) stop(definition string) {
	s := d.source
	s.mu.Lock()
	stop := s.running[definition]
	delete(s.running, definition)
	s.mu.Unlock()
	if stop != nil {
		stop()
		s.log.Info("kind is not defined any more", "kind", definition)
	}
}
