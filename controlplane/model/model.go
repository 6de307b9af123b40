// Package model keeps what every object means, and redoes only what a change
// touches.
//
//	source.Update ─► objects ─► compile, noting what each object read
//	                    │             │
//	                    └── a change finds the results that read it ──► Change{Key, Output}
//
// A result remembers the objects it read by name, and the questions it asked
// ("the Services of namespace shop whose selector matches these labels"): a
// changed object touches a question when it answers it now or did before. So one
// pod's change recomputes one pod, and a policy's change the pods it selects.
//
// An object that is wrong by itself (compile.Validate) does not replace its last
// good version. An AuthorizationPolicy that never was good denies what it
// selects; other such objects are left out.
//
// Apply is called by one goroutine at a time; everything else is safe for
// concurrent use.
package model

import (
	"cmp"
	"slices"
	"sync"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Change is a new result. Output is empty when the object is gone.
type Change struct {
	Key    source.Key
	Output compile.Output
}

// MeshKey is the Key of what the mesh has whatever objects exist.
var MeshKey = source.Key{Kind: "Mesh"}

// Model holds objects and results.
type Model struct {
	mesh compile.Mesh

	mu       sync.RWMutex
	objects  *objects
	rejected map[source.Key][]compile.Condition // of versions that were not taken
	units    map[source.Key]*unit
	spoken   map[source.Key]*unit // those of units with conditions, which most have not
	readers  *readers
	running  map[account]int // pods
	started  bool
	scratch  []read // of the compilation at hand
}

// account is a service account on a node.
type account struct{ node, namespace, name string }

// unit is an object with its result.
type unit struct {
	key   source.Key
	reads []read
	out   compile.Output
}

// New returns an empty model.
func New(m compile.Mesh) *Model {
	return &Model{
		mesh: m.WithDefaults(), objects: newObjects(), rejected: map[source.Key][]compile.Condition{},
		units: map[source.Key]*unit{}, spoken: map[source.Key]*unit{}, readers: newReaders(), running: map[account]int{},
	}
}

// touched is an object before and after; either may be nil.
type touched struct {
	key      source.Key
	old, new source.Object
}

// Apply takes an update and returns what it changed, in order of keys.
func (m *Model) Apply(u source.Update) []Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	var changes []Change
	if !m.started {
		m.started = true
		changes = append(changes, Change{MeshKey, compile.Output{Policies: []*mesh.Policy{compile.StaticStrict(m.mesh)}}})
	}
	dirty := m.dirtyLocked(m.storeLocked(u))
	for _, key := range dirty {
		changes = append(changes, m.compileLocked(key))
	}
	return changes
}

// storeLocked puts the update into the objects and returns what changed there.
func (m *Model) storeLocked(u source.Update) []touched {
	var out []touched
	for _, o := range u.Set {
		key := o.Key()
		old := m.objects.get(key)
		problems := compile.Validate(o)
		if len(problems) > 0 && (old != nil || key.Kind != source.KindAuthorizationPolicy) {
			m.rejected[key] = problems
			continue
		}
		delete(m.rejected, key)
		m.objects.put(o)
		m.countLocked(old, -1)
		m.countLocked(o, 1)
		out = append(out, touched{key, old, o})
	}
	for _, key := range u.Removed {
		delete(m.rejected, key)
		if old := m.objects.get(key); old != nil {
			m.objects.remove(key)
			m.countLocked(old, -1)
			out = append(out, touched{key, old, nil})
		}
	}
	return out
}

// countLocked notes where a pod runs.
func (m *Model) countLocked(o source.Object, n int) {
	p, ok := o.(*source.Pod)
	if !ok || ended(p) {
		return
	}
	a := account{p.Node, p.Namespace, p.ServiceAccount}
	if m.running[a] += n; m.running[a] <= 0 {
		delete(m.running, a)
	}
}

// dirtyLocked returns the keys whose results the changes touch.
func (m *Model) dirtyLocked(changes []touched) []source.Key {
	dirty := map[source.Key]struct{}{}
	for _, c := range changes {
		dirty[c.key] = struct{}{}
		m.readers.touch(c, dirty)
	}
	out := make([]source.Key, 0, len(dirty))
	for key := range dirty {
		out = append(out, key)
	}
	slices.SortFunc(out, source.Key.Compare)
	return out
}

// compileLocked redoes one result.
func (m *Model) compileLocked(key source.Key) Change {
	u := m.units[key]
	if u != nil {
		m.readers.forget(u)
	}
	o := m.objects.get(key)
	if o == nil {
		delete(m.units, key)
		delete(m.spoken, key)
		return Change{Key: key}
	}
	if u == nil {
		u = &unit{key: key}
		m.units[key] = u
	}
	v := &view{objects: m.objects, reads: m.scratch[:0]}
	u.out = compile.Compile(m.mesh, v, o)
	u.reads = slices.Clone(v.reads)
	clear(v.reads)
	m.scratch = v.reads
	m.readers.remember(u)
	if len(u.out.Conditions) > 0 {
		m.spoken[key] = u
	} else {
		delete(m.spoken, key)
	}
	return Change{key, u.out}
}

// Results returns every result.
func (m *Model) Results() map[source.Key]compile.Output {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make(map[source.Key]compile.Output, len(m.units))
	for key, u := range m.units {
		out[key] = u.out
	}
	return out
}

// Conditions returns what there is to say about the objects, by object. The
// conditions of a version that was not taken follow those of the one in force.
func (m *Model) Conditions() []compile.Condition {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out []compile.Condition
	for _, u := range m.spoken {
		out = append(out, u.out.Conditions...)
	}
	for key, problems := range m.rejected {
		for _, p := range problems {
			if m.objects.get(key) != nil {
				p.Message += inForce
			}
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b compile.Condition) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Field, b.Field))
	})
	return out
}

// Runs reports whether a pod of that service account, not ended, is on node.
func (m *Model) Runs(node, namespace, serviceAccount string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.running[account{node, namespace, serviceAccount}] > 0
}

// Len returns the number of objects.
func (m *Model) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.units)
}
