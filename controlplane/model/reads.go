package model

import (
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// objects are the objects by kind, namespace and name.
type objects struct {
	kinds map[source.Kind]map[string]map[string]source.Object
}

func newObjects() *objects {
	return &objects{kinds: map[source.Kind]map[string]map[string]source.Object{}}
}

func (s *objects) get(k source.Key) source.Object { return s.kinds[k.Kind][k.Namespace][k.Name] }

func (s *objects) put(o source.Object) {
	k := o.Key()
	namespaces := s.kinds[k.Kind]
	if namespaces == nil {
		namespaces = map[string]map[string]source.Object{}
		s.kinds[k.Kind] = namespaces
	}
	names := namespaces[k.Namespace]
	if names == nil {
		names = map[string]source.Object{}
		namespaces[k.Namespace] = names
	}
	names[k.Name] = o
}

func (s *objects) remove(k source.Key) {
	names := s.kinds[k.Kind][k.Namespace]
	delete(names, k.Name)
	if len(names) == 0 {
		delete(s.kinds[k.Kind], k.Namespace)
	}
}

func (s *objects) list(kind source.Kind, namespace string, match func(source.Object) bool) []source.Object {
	var out []source.Object
	collect := func(names map[string]source.Object) {
		for _, o := range names {
			if match(o) {
				out = append(out, o)
			}
		}
	}
	if namespace != "" {
		collect(s.kinds[kind][namespace])
	} else {
		for _, names := range s.kinds[kind] {
			collect(names)
		}
	}
	slices.SortFunc(out, func(a, b source.Object) int { return a.Key().Compare(b.Key()) })
	return out
}

// read is one thing that a compilation looked at: an object by name, or, when
// match is set, a question about a namespace.
type read struct {
	key   source.Key // without Name for a question; without Namespace for all of them
	match func(source.Object) bool
}

// view is the objects as one compilation sees them. It implements compile.View.
type view struct {
	objects *objects
	reads   []read
}

// Get implements compile.View.
func (v *view) Get(key source.Key) source.Object {
	v.reads = append(v.reads, read{key: key})
	return v.objects.get(key)
}

// List implements compile.View.
func (v *view) List(kind source.Kind, namespace string, match func(source.Object) bool) []source.Object {
	v.reads = append(v.reads, read{source.Key{Kind: kind, Namespace: namespace}, match})
	return v.objects.list(kind, namespace, match)
}

// readers finds the units that read something.
type readers struct {
	named     map[source.Key]map[*unit]struct{}
	questions map[source.Key]map[*unit]struct{}
}

func newReaders() *readers {
	return &readers{map[source.Key]map[*unit]struct{}{}, map[source.Key]map[*unit]struct{}{}}
}

func (r *readers) index(rd read) map[source.Key]map[*unit]struct{} {
	if rd.match != nil {
		return r.questions
	}
	return r.named
}

func (r *readers) remember(u *unit) {
	for _, rd := range u.reads {
		index := r.index(rd)
		if index[rd.key] == nil {
			index[rd.key] = map[*unit]struct{}{}
		}
		index[rd.key][u] = struct{}{}
	}
}

func (r *readers) forget(u *unit) {
	for _, rd := range u.reads {
		index := r.index(rd)
		delete(index[rd.key], u)
		if len(index[rd.key]) == 0 {
			delete(index, rd.key)
		}
	}
	u.reads = nil
}

// touch adds to dirty the units that c concerns.
func (r *readers) touch(c touched, dirty map[source.Key]struct{}) {
	for u := range r.named[c.key] {
		dirty[u.key] = struct{}{}
	}
	for _, namespace := range []string{c.key.Namespace, ""} {
		question := source.Key{Kind: c.key.Kind, Namespace: namespace}
		for u := range r.questions[question] {
			if _, known := dirty[u.key]; !known && answers(u, question, c) {
				dirty[u.key] = struct{}{}
			}
		}
		if c.key.Namespace == "" {
			break
		}
	}
}

// answers reports whether c was or is among the answers to a question of u's.
func answers(u *unit, question source.Key, c touched) bool {
	for _, rd := range u.reads {
		if rd.match == nil || rd.key != question {
			continue
		}
		if c.old != nil && rd.match(c.old) || c.new != nil && rd.match(c.new) {
			return true
		}
	}
	return false
}
