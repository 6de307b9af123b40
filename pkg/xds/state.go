package xds

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// maxNackBytes bounds the text of a rejection.
const maxNackBytes = 16 << 10

// typeState is what is known of one type. It outlives streams.
type typeState struct {
	sub      Subscription
	accepted bool // a response was accepted whole; the receiver's own

	mu       sync.Mutex          // guards what follows
	versions map[string]string   // of every resource that is held
	aliases  map[string]string   // alias to name, of the same; not for wildcards
	aliased  map[string][]string // name to its aliases
	names    map[string]bool     // subscribed to
	changed  map[string]bool     // since the last request: name to wanted
}

func newTypeState(sub Subscription) *typeState {
	st := &typeState{
		sub:      sub,
		versions: make(map[string]string),
		aliases:  make(map[string]string),
		aliased:  make(map[string][]string),
		names:    make(map[string]bool),
		changed:  make(map[string]bool),
	}
	for _, name := range sub.Names {
		st.names[name] = true
	}
	return st
}

// want notes names that are subscribed to or not any more.
func (st *typeState) want(names []string, wanted bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, name := range names {
		if st.names[name] == wanted {
			continue
		}
		if wanted {
			st.names[name] = true
		} else {
			delete(st.names, name)
		}
		if before, noted := st.changed[name]; noted && before != wanted {
			delete(st.changed, name)
			continue
		}
		st.changed[name] = wanted
	}
}

// firstRequest is the type's first on a stream. It tells what is held, so that
// only differences come. Names that are awaited go along with an empty version,
// which is how some servers learn of them again after a reconnect.
func (st *typeState) firstRequest(node *core.Node) *discovery.DeltaDiscoveryRequest {
	st.mu.Lock()
	defer st.mu.Unlock()
	for name, wanted := range st.changed {
		if !wanted {
			st.forgetLocked(name)
		}
	}
	clear(st.changed)
	r := &discovery.DeltaDiscoveryRequest{
		Node:                    node,
		TypeUrl:                 st.sub.TypeURL,
		InitialResourceVersions: make(map[string]string, len(st.versions)),
	}
	for name, version := range st.versions {
		r.InitialResourceVersions[name] = version
	}
	if st.sub.Wildcard {
		return r
	}
	for name := range st.names {
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, name)
		_, held := st.versions[name]
		if _, alias := st.aliases[name]; !held && !alias {
			r.InitialResourceVersions[name] = ""
		}
	}
	slices.Sort(r.ResourceNamesSubscribe)
	if len(st.names) == 0 {
		// An empty list would mean everything.
		r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe = []string{"*"}, []string{"*"}
	}
	return r
}

// changeRequest tells changed names, or is nil.
func (st *typeState) changeRequest() *discovery.DeltaDiscoveryRequest {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.changed) == 0 {
		return nil
	}
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: st.sub.TypeURL}
	for name, wanted := range st.changed {
		if wanted {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, name)
			continue
		}
		r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, name)
		st.forgetLocked(name)
	}
	clear(st.changed)
	slices.Sort(r.ResourceNamesSubscribe)
	slices.Sort(r.ResourceNamesUnsubscribe)
	return r
}

func (st *typeState) forgetLocked(name string) {
	if target, ok := st.aliases[name]; ok {
		name = target
	}
	delete(st.versions, name)
	for _, alias := range st.aliased[name] {
		delete(st.aliases, alias)
	}
	delete(st.aliased, name)
}

// apply hands a response's changes over, notes the versions of what was accepted
// and returns the rest. What was held before a rejected change is still held.
func (st *typeState) apply(resp *discovery.DeltaDiscoveryResponse) []Rejected {
	var rejected []Rejected
	added := make([]Resource, 0, len(resp.GetResources()))
	for _, r := range resp.GetResources() {
		if err := st.check(r); err != nil {
			rejected = append(rejected, Rejected{r.GetName(), err})
			continue
		}
		added = append(added, Resource{r.GetName(), r.GetVersion(), r.GetAliases(), r.GetResource()})
	}
	if removed := resp.GetRemovedResources(); len(added)+len(removed) > 0 {
		refused := st.sub.Handle(added, removed)
		st.note(added, removed, refused)
		rejected = append(rejected, refused...)
	}
	if len(rejected) == 0 {
		st.accepted = true
	}
	return rejected
}

// note records what is held now.
func (st *typeState) note(added []Resource, removed []string, rejected []Rejected) {
	bad := make(map[string]bool, len(rejected))
	for _, r := range rejected {
		bad[r.Name] = true
	}
	for some := range slices.Chunk(removed, breath) {
		st.mu.Lock()
		for _, name := range some {
			st.forgetLocked(name)
		}
		st.mu.Unlock()
		runtime.Gosched()
	}
	for some := range slices.Chunk(added, breath) {
		st.mu.Lock()
		for _, r := range some {
			if !bad[r.Name] {
				st.holdLocked(r)
			}
		}
		st.mu.Unlock()
		runtime.Gosched()
	}
}

func (st *typeState) check(r *discovery.Resource) error {
	if r.GetResource() == nil {
		return errors.New("resource: empty")
	}
	if got := r.GetResource().GetTypeUrl(); got != st.sub.TypeURL {
		return fmt.Errorf("resource: type %q, want %q", got, st.sub.TypeURL)
	}
	return nil
}

func (st *typeState) holdLocked(r Resource) {
	if st.sub.Wildcard {
		st.versions[r.Name] = r.Version
		return
	}
	st.forgetLocked(r.Name)
	st.versions[r.Name] = r.Version
	st.aliased[r.Name] = r.Aliases
	for _, alias := range r.Aliases {
		st.aliases[alias] = r.Name
	}
}

// answer is the ACK of a response, or its NACK.
func answer(resp *discovery.DeltaDiscoveryResponse, rejected []Rejected) *discovery.DeltaDiscoveryRequest {
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if len(rejected) > 0 {
		r.ErrorDetail = &status.Status{Message: rejectionText(rejected)}
	}
	return r
}

func rejectionText(rejected []Rejected) string {
	var b strings.Builder
	for i, r := range rejected {
		if b.Len() > maxNackBytes {
			fmt.Fprintf(&b, "; and %d more", len(rejected)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", r.Name, r.Err)
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}
