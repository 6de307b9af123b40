package model

import (
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

// ConditionsOf returns what there is to say about one object: of the version in
// force, then of a newer one that was not taken. known is false when the model
// has neither.
func (m *Model) ConditionsOf(key source.Key) (conditions []compile.Condition, known bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	problems, refused := m.rejected[key]
	u := m.units[key]
	if u != nil {
		conditions = slices.Clone(u.out.Conditions)
	}
	for _, p := range problems {
		if u != nil {
			p.Message += inForce
		}
		conditions = append(conditions, p)
	}
	return conditions, u != nil || refused
}

// AddressesOf returns the addresses that the hosts of a ServiceEntry have.
func (m *Model) AddressesOf(key source.Key) []source.HostAddress {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if u := m.units[key]; u != nil {
		return u.out.Addresses
	}
	return nil
}

// inForce ends what is said about a version that was not taken.
const inForce = "; the last good version stays in force"

// Keys returns the keys of all objects, those with no good version included.
func (m *Model) Keys() []source.Key {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]source.Key, 0, len(m.units)+len(m.rejected))
	for key := range m.units {
		out = append(out, key)
	}
	for key := range m.rejected {
		if m.units[key] == nil {
			out = append(out, key)
		}
	}
	return out
}

// Judge returns what would be said about an object if it were the model's: what
// is wrong with it by itself, or, when nothing is, what it would come to among the
// objects that there are. The model stays as it is.
func (m *Model) Judge(o source.Object) (problems, conditions []compile.Condition) {
	if problems = compile.Validate(o); len(problems) > 0 {
		return problems, nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return nil, compile.Compile(m.mesh, supposing{m.objects, o}, o).Conditions
}

// supposing is the objects as they would be with one more, or with one in a new
// version. It implements compile.View.
type supposing struct {
	objects *objects
	object  source.Object
}

// Get implements compile.View.
func (s supposing) Get(key source.Key) source.Object {
	if key == s.object.Key() {
		return s.object
	}
	return s.objects.get(key)
}

// List implements compile.View.
func (s supposing) List(kind source.Kind, namespace string, match func(source.Object) bool) []source.Object {
	own := s.object.Key()
	out := s.objects.list(kind, namespace, func(o source.Object) bool { return o.Key() != own && match(o) })
	if kind == own.Kind && (namespace == "" || namespace == own.Namespace) && match(s.object) {
		out = append(out, s.object)
		slices.SortFunc(out, func(a, b source.Object) int { return a.Key().Compare(b.Key()) })
	}
	return out
}

// Names implements compile.View.
func (s supposing) Names(kind source.Kind, namespace string, match func(source.Object) bool) []source.Key {
	return keys(s.List(kind, namespace, match))
}
