package model

import (
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/compile"
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

func (s *objects) names(kind source.Kind, namespace string, match func(source.Object) bool) []source.Key {
	return keys(s.list(kind, namespace, match))
}

func keys(list []source.Object) []source.Key {
	out := make([]source.Key, len(list))
	for i, o := range list {
		out[i] = o.Key()
	}
	return out
}

// read is one thing that a compilation looked at: an object by name, or, when
// match is set, a question about a namespace.
type read struct {
	key   source.Key // without Name for a question; without Namespace for all of them
	match func(source.Object) bool
	names bool // of what matches only the names were used
}

// touched reports whether c gives a question another answer.
func (rd *read) touched(c touched) bool {
	before := c.old != nil && rd.match(c.old)
	if before && !rd.names {
		return true
	}
	after := c.new != nil && rd.match(c.new)
	return before != after
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
	v.reads = append(v.reads, read{key: source.Key{Kind: kind, Namespace: namespace}, match: match})
	return v.objects.list(kind, namespace, match)
}

// Names implements compile.View.
func (v *view) Names(kind source.Kind, namespace string, match func(source.Object) bool) []source.Key {
	v.reads = append(v.reads, read{key: source.Key{Kind: kind, Namespace: namespace}, match: match, names: true})
	return v.objects.names(kind, namespace, match)
}

// readers finds the units that read something.
type readers struct {
	named     map[source.Key]map[*unit]struct{}
	questions map[source.Key]map[*read]*unit
	names     map[source.Key]map[*read]*unit // questions whose answers are names
}

func newReaders() *readers {
	return &readers{map[source.Key]map[*unit]struct{}{}, map[source.Key]map[*read]*unit{}, map[source.Key]map[*read]*unit{}}
}

// of returns the questions that are like rd.
func (r *readers) of(rd *read) map[source.Key]map[*read]*unit {
	if rd.names {
		return r.names
	}
	return r.questions
}

// remember takes what u has read. u.reads stays where it is until forget.
func (r *readers) remember(u *unit) {
	for i := range u.reads {
		if rd := &u.reads[i]; rd.match != nil {
			put(r.of(rd), rd.key, rd, u)
		} else {
			put(r.named, rd.key, u, struct{}{})
		}
	}
}

func (r *readers) forget(u *unit) {
	for i := range u.reads {
		if rd := &u.reads[i]; rd.match != nil {
			drop(r.of(rd), rd.key, rd)
		} else {
			drop(r.named, rd.key, u)
		}
	}
	u.reads = nil
}

func put[K comparable, V any](index map[source.Key]map[K]V, key source.Key, k K, v V) {
	if index[key] == nil {
		index[key] = map[K]V{}
	}
	index[key][k] = v
}

func drop[K comparable, V any](index map[source.Key]map[K]V, key source.Key, k K) {
	delete(index[key], k)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}

// touch adds to dirty the units that c concerns.
func (r *readers) touch(c touched, dirty map[source.Key]struct{}) {
	for u := range r.named[c.key] {
		dirty[u.key] = struct{}{}
	}
	asked := []map[source.Key]map[*read]*unit{r.questions}
	if c.old == nil || c.new == nil || !compile.SelectsSame(c.old, c.new) {
		asked = append(asked, r.names)
	}
	for _, namespace := range []string{c.key.Namespace, ""} {
		for _, index := range asked {
			for rd, u := range index[source.Key{Kind: c.key.Kind, Namespace: namespace}] {
				if rd.touched(c) {
					dirty[u.key] = struct{}{}
				}
			}
		}
		if c.key.Namespace == "" {
			break
		}
	}
}
