// Package xds is the control plane's end of the discovery protocol: delta
// streams over which ztunnels and waypoints learn of the mesh.
//
//	model ── Change ─► Cache ── names that changed ─► stream 1 pending {a, b} ─► Send
//	                     │                            stream 2 pending {a}    ─► Send
//	                     └── read again when a stream is ready to send
//
// A change is sent at once: there is no timer that gathers. What changes while a
// stream is being written to waits as a set of names, so a client that reads
// slowly gets the latest state of each, holds up nobody, and costs no more than
// the names.
//
// A resource is encoded once, when it is made: what is being written to any number of
// clients is in memory once.
//
// Versions are hashes of content. A client that reconnects, to this process or to
// the next one, tells what it has and is sent what differs.
//
// Within one push what others refer to is sent first and removed last, so that no
// client holds a workload that names a policy it was not sent.
//
// Everything is safe for concurrent use.
package xds

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Name names a resource.
type Name struct {
	Type string // type URL
	Name string
}

// Resource is one resource as it is sent.
type Resource struct {
	Name
	Version string
	Aliases []string // other names under which it may be asked for
	Scope   string   // the one client scope that sees it; "" = all

	// Group is the set of resources that a client gets along with this one when it
	// asks by name; "" for none. Groups are the sets that this one belongs to.
	Group  string
	Groups []string

	wire mem.Buffer // the field of a response that it is
	size int        // bytes of its content
}

// NodeGroup is the set of what a client on that node needs without asking.
func NodeGroup(node string) string { return "@node/" + node }

// same reports whether clients could not tell r from other. What a resource
// belongs to follows from its content.
func (r *Resource) same(other *Resource) bool {
	return r.Version == other.Version && r.Scope == other.Scope
}

func (r *Resource) visible(scope string) bool { return r.Scope == "" || r.Scope == scope }

// owned is a resource and the object it comes from. Several objects may yield
// the same resource, for the same scope or for different ones.
type owned struct {
	owner source.Key
	Resource
}

// typeCache holds the resources of one type.
type typeCache struct {
	byName  map[string][]owned
	aliases map[string][]string            // alias to names
	groups  map[string]map[string]struct{} // group to names of its members
	sorted  atomic.Pointer[[]string]       // the names, once somebody has asked; readers of the cache set it
}

// names returns all names, in order. They are not to be changed.
func (t *typeCache) names() []string {
	if list := t.sorted.Load(); list != nil {
		return *list
	}
	list := slices.Sorted(maps.Keys(t.byName))
	t.sorted.Store(&list)
	return list
}

// Cache holds what there is to send, and tells streams what changed.
type Cache struct {
	mu      sync.RWMutex
	types   map[string]*typeCache
	owners  map[source.Key][]Name
	streams map[*stream]struct{}
	changes uint64 // Apply calls so far
}

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{types: map[string]*typeCache{}, owners: map[source.Key][]Name{}, streams: map[*stream]struct{}{}}
}

// Update is everything that one object yields now.
type Update struct {
	Owner     source.Key
	Resources []Resource
}

// Apply takes what objects yield and pushes what that changes.
func (c *Cache) Apply(updates []Update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	touched := map[*stream]struct{}{}
	for _, u := range updates {
		c.applyLocked(u, touched)
	}
	for s := range touched {
		s.signal()
	}
}

func (c *Cache) applyLocked(u Update, touched map[*stream]struct{}) {
	names := make([]Name, 0, len(u.Resources))
	for i := range u.Resources {
		names = append(names, u.Resources[i].Name)
	}
	for _, n := range c.owners[u.Owner] {
		if !slices.Contains(names, n) {
			c.setLocked(u.Owner, n, nil, touched)
		}
	}
	for i := range u.Resources {
		c.setLocked(u.Owner, u.Resources[i].Name, &u.Resources[i], touched)
	}
	if len(names) == 0 {
		delete(c.owners, u.Owner)
	} else {
		c.owners[u.Owner] = names
	}
}

// setLocked replaces what owner yields under one name; nil removes it.
func (c *Cache) setLocked(owner source.Key, n Name, r *Resource, touched map[*stream]struct{}) {
	t := c.typeLocked(n.Type)
	list := t.byName[n.Name]
	i := slices.IndexFunc(list, func(o owned) bool { return o.owner == owner })
	if i < 0 && r == nil || i >= 0 && r != nil && list[i].same(r) {
		return
	}
	next := make([]owned, 0, len(list)+1)
	for j, o := range list {
		if j != i {
			next = append(next, o)
		}
	}
	if r != nil {
		next = append(next, owned{owner, *r})
	}
	t.replace(n.Name, next)
	for s := range c.streams {
		if s.mark(n, visible(list, s.client.Scope), visible(next, s.client.Scope)) {
			touched[s] = struct{}{}
		}
	}
}

func (c *Cache) typeLocked(url string) *typeCache {
	t := c.types[url]
	if t == nil {
		t = &typeCache{byName: map[string][]owned{}, aliases: map[string][]string{}, groups: map[string]map[string]struct{}{}}
		c.types[url] = t
	}
	return t
}

// replace sets who yields a name, and keeps aliases and groups in step.
func (t *typeCache) replace(name string, next []owned) {
	for _, o := range t.byName[name] {
		t.leaveGroups(name, o.Groups)
		for _, a := range o.Aliases {
			t.aliases[a] = slices.DeleteFunc(t.aliases[a], func(n string) bool { return n == name })
			if len(t.aliases[a]) == 0 {
				delete(t.aliases, a)
			}
		}
	}
	for _, o := range next {
		t.joinGroups(name, o.Groups)
		for _, a := range o.Aliases {
			if !slices.Contains(t.aliases[a], name) {
				t.aliases[a] = append(t.aliases[a], name)
			}
		}
	}
	if (len(next) == 0) != (len(t.byName[name]) == 0) {
		t.sorted.Store(nil)
	}
	if len(next) == 0 {
		delete(t.byName, name)
	} else {
		t.byName[name] = next
	}
}

func (t *typeCache) joinGroups(name string, groups []string) {
	for _, g := range groups {
		if t.groups[g] == nil {
			t.groups[g] = map[string]struct{}{}
		}
		t.groups[g][name] = struct{}{}
	}
}

func (t *typeCache) leaveGroups(name string, groups []string) {
	for _, g := range groups {
		if delete(t.groups[g], name); len(t.groups[g]) == 0 {
			delete(t.groups, g)
		}
	}
}

// lookup returns the resource that a client of that scope sees under a name or
// alias, or nil.
func (t *typeCache) lookup(name, scope string) *Resource {
	if r := t.named(name, scope); r != nil {
		return r
	}
	for _, n := range t.aliases[name] {
		if r := t.named(n, scope); r != nil {
			return r
		}
	}
	return nil
}

func (t *typeCache) named(name, scope string) *Resource { return visible(t.byName[name], scope) }

// visible returns the first resource of the list that scope sees, or nil.
func visible(list []owned, scope string) *Resource {
	for i := range list {
		if list[i].visible(scope) {
			return &list[i].Resource
		}
	}
	return nil
}

// Count returns the number of resources of each type.
func (c *Cache) Count() map[string]int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make(map[string]int, len(c.types))
	for url, t := range c.types {
		out[url] = len(t.byName)
	}
	return out
}
