package xds

import (
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
)

// wildcard stands for every resource of a type.
const wildcard = "*"

// Subscription is what a client is sent of one type, and how it took it.
type subscription struct {
	wildcard bool
	names    map[string]struct{} // asked for by name or alias
	groups   map[string]struct{} // whose members come along with what was asked for
	pending  map[string]struct{} // changed since they were last sent
	all      bool                // everything is pending, whatever pending says
	since    time.Time           // when the oldest pending change came
	answer   bool                // a response is due even without content
	status   TypeStatus
	sent     map[string]time.Time // nonces not yet answered, and when their changes came
}

// TypeStatus is how a client stands with one type.
type TypeStatus struct {
	Sent     string    `json:"sent,omitempty"`  // nonce of the latest response
	Acked    string    `json:"acked,omitempty"` // nonce of the latest one it answered
	Synced   bool      `json:"synced"`          // it has accepted all it was sent
	Nacks    int       `json:"nacks,omitempty"` // responses that it refused in part or whole
	LastNack string    `json:"nack,omitempty"`  // its reason, while the latest answer is a refusal
	NackTime time.Time `json:"nackTime,omitzero"`
	Pushes   int       `json:"pushes"`
}

// stream is one client's stream. Lock order: Cache.mu, then stream.mu.
type stream struct {
	client Client
	order  []string // types, in the order of pushing
	wake   chan struct{}

	mu    sync.Mutex
	subs  map[string]*subscription
	nonce uint64
}

func newStream(c Client, order []string) *stream {
	return &stream{client: c, order: order, wake: make(chan struct{}, 1), subs: map[string]*subscription{}}
}

// signal wakes the sender; signals while it is awake count as one.
func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// mark notes a change of what the client sees, if it has subscribed to it. The
// caller holds Cache.mu.
func (s *stream) mark(n Name, old, new *Resource) bool {
	if old == nil && new == nil || old != nil && new != nil && old.Version == new.Version {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subs[n.Type]
	if sub == nil {
		return false
	}
	marked := sub.markLocked(n.Name, sub.wildcard)
	for _, r := range []*Resource{old, new} {
		if r != nil && !sub.wildcard {
			marked = sub.markRelatedLocked(r) || marked
		}
	}
	return marked
}

// markRelatedLocked adds what is pending since r is known by its other names and
// by the groups it is in.
func (sub *subscription) markRelatedLocked(r *Resource) (marked bool) {
	for _, a := range r.Aliases {
		marked = sub.markLocked(a, false) || marked
	}
	for _, g := range r.Groups {
		if _, wanted := sub.groups[g]; wanted {
			marked = sub.markLocked(r.Name.Name, true) || marked
		}
	}
	return marked
}

// markLocked adds a name to what is pending, if it is subscribed to.
func (sub *subscription) markLocked(name string, wanted bool) bool {
	if !wanted {
		if _, wanted = sub.names[name]; !wanted {
			return false
		}
	}
	if len(sub.pending) == 0 && !sub.all {
		sub.since = time.Now()
	}
	sub.pending[name] = struct{}{}
	return true
}

// request takes a request: an answer to a response, a subscription, or both.
func (s *stream) request(c *Cache, req *discovery.DeltaDiscoveryRequest, now time.Time) (acked time.Duration, nack string) {
	c.mu.RLock() // no change is published between looking and subscribing
	defer c.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subs[req.GetTypeUrl()]
	if sub == nil {
		sub = &subscription{names: map[string]struct{}{}, groups: map[string]struct{}{}, pending: map[string]struct{}{}, sent: map[string]time.Time{}, answer: true}
		s.subs[req.GetTypeUrl()] = sub
		sub.open(c.types[req.GetTypeUrl()], s.client, req)
		s.signal()
		return 0, ""
	}
	if req.GetResponseNonce() != "" {
		acked, nack = sub.answered(req, now)
	}
	if len(req.GetResourceNamesSubscribe())+len(req.GetResourceNamesUnsubscribe()) > 0 {
		sub.change(c.types[req.GetTypeUrl()], s.client.Scope, req)
		s.signal()
	}
	return acked, nack
}

// open takes the first request for a type. Without names it asks for everything.
// Who asks by name is told what is on its own node without asking.
func (sub *subscription) open(t *typeCache, client Client, req *discovery.DeltaDiscoveryRequest) {
	scope, held := client.Scope, req.GetInitialResourceVersions()
	names := req.GetResourceNamesSubscribe()
	unsubscribed := slices.Contains(req.GetResourceNamesUnsubscribe(), wildcard)
	sub.wildcard = (len(names) == 0 || slices.Contains(names, wildcard)) && !unsubscribed
	sub.since = time.Now()
	for _, n := range names {
		if n != wildcard {
			sub.names[n] = struct{}{}
		}
	}
	if !sub.wildcard {
		for n := range held { // what is held by name is still wanted by name
			sub.names[n] = struct{}{}
		}
		if client.Node != "" {
			sub.follow(t, scope, NodeGroup(client.Node), held)
		}
	}
	sub.enqueue(t, scope, maps.Keys(sub.names), held)
	if sub.wildcard {
		sub.enqueueAll(t, scope, held)
		for n := range held {
			if t == nil || t.lookup(n, scope) == nil {
				sub.pending[n] = struct{}{}
			}
		}
	}
}

// enqueue makes names pending, but for those held in the present version.
func (sub *subscription) enqueue(t *typeCache, scope string, names func(func(string) bool), held map[string]string) {
	for n := range names {
		if t != nil {
			if r := t.lookup(n, scope); r != nil && held[r.Name.Name] == r.Version {
				sub.follow(t, scope, r.Group, held)
				continue
			}
		}
		sub.pending[n] = struct{}{}
	}
}

// follow subscribes to the members of a group: those there are, but for what is
// held in the present version, and those to come.
func (sub *subscription) follow(t *typeCache, scope, group string, held map[string]string) {
	if _, followed := sub.groups[group]; followed || group == "" || sub.wildcard {
		return
	}
	sub.groups[group] = struct{}{}
	if t == nil {
		return
	}
	for n := range t.groups[group] {
		if r := t.named(n, scope); r != nil && held[n] != r.Version {
			sub.pending[n] = struct{}{}
		}
	}
}

// unfollow forgets the group that came along with a name, unless the client asks
// for the same resource under another.
func (sub *subscription) unfollow(t *typeCache, scope, name string) {
	if t == nil {
		return
	}
	r := t.lookup(name, scope)
	if r == nil || r.Group == "" {
		return
	}
	for _, other := range append([]string{r.Name.Name}, r.Aliases...) {
		if _, wanted := sub.names[other]; wanted {
			return
		}
	}
	delete(sub.groups, r.Group)
}

// enqueueAll makes everything pending but for what is held in the present version.
func (sub *subscription) enqueueAll(t *typeCache, scope string, held map[string]string) {
	if len(held) == 0 {
		sub.all = true
		return
	}
	if t == nil {
		return
	}
	for n := range t.byName {
		if r := t.named(n, scope); r != nil && held[n] != r.Version {
			sub.pending[n] = struct{}{}
		}
	}
}

// change takes a later change of names. Every name newly asked for is answered,
// if only with its absence.
func (sub *subscription) change(t *typeCache, scope string, req *discovery.DeltaDiscoveryRequest) {
	if len(sub.pending) == 0 && !sub.all {
		sub.since = time.Now()
	}
	for _, n := range req.GetResourceNamesUnsubscribe() {
		if n == wildcard {
			sub.wildcard = false
		}
		delete(sub.names, n)
		sub.unfollow(t, scope, n)
	}
	for _, n := range req.GetResourceNamesSubscribe() {
		if n == wildcard {
			sub.wildcard = true
			sub.enqueueAll(t, scope, nil)
			continue
		}
		sub.names[n] = struct{}{}
		sub.pending[n] = struct{}{}
	}
}

// answered takes an ACK or a NACK.
func (sub *subscription) answered(req *discovery.DeltaDiscoveryRequest, now time.Time) (took time.Duration, nack string) {
	since, known := sub.sent[req.GetResponseNonce()]
	if !known {
		return 0, ""
	}
	delete(sub.sent, req.GetResponseNonce())
	sub.status.Acked = req.GetResponseNonce()
	if e := req.GetErrorDetail(); e != nil {
		sub.status.Nacks++
		sub.status.LastNack, sub.status.NackTime = e.GetMessage(), now
		return 0, e.GetMessage()
	}
	sub.status.LastNack, sub.status.NackTime = "", time.Time{}
	return now.Sub(since), ""
}

// due reports whether there is something to send.
func (sub *subscription) due() bool { return sub.answer || sub.all || len(sub.pending) > 0 }

// collect takes what is pending and returns the responses for it: what others
// refer to first, and its removal last.
func (s *stream) collect(c *Cache) []*response {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []string
	for _, url := range s.order {
		if sub := s.subs[url]; sub != nil && sub.due() {
			due = append(due, url)
		}
	}
	var sets, removals []*response
	for _, url := range due {
		sub := s.subs[url]
		t := sub.take(c.types[url], s.client.Scope)
		if len(t.resources) > 0 || sub.answer {
			together := t.removed
			if len(due) > 1 {
				together = nil
			}
			sets = append(sets, s.responseLocked(url, sub, c.changes, t, together))
			t.removed = t.removed[len(together):]
		}
		if len(t.removed) > 0 {
			removals = append(removals, s.responseLocked(url, sub, c.changes, taken{}, t.removed))
		}
		sub.answer = false
	}
	slices.Reverse(removals)
	return append(sets, removals...)
}

// taken is what was pending.
type taken struct {
	resources []mem.Buffer
	size      int // bytes of their content
	removed   []string
}

func (t *taken) add(r *Resource) {
	t.resources = append(t.resources, r.wire)
	t.size += r.size
}

// take empties pending. What comes along with a resource is pending once the
// resource is taken.
func (sub *subscription) take(t *typeCache, scope string) (out taken) {
	if t == nil {
		out.removed = slices.Sorted(maps.Keys(sub.pending))
	} else if sub.all {
		out = t.everything(scope)
		out.removed = slices.Sorted(sub.absent(t, scope))
	} else {
		sub.takeNamed(t, scope, &out)
	}
	sub.all, sub.pending = false, map[string]struct{}{}
	return out
}

// everything returns all that scope sees.
func (t *typeCache) everything(scope string) (out taken) {
	names := t.names()
	out.resources = make([]mem.Buffer, 0, len(names))
	for _, n := range names {
		if r := t.named(n, scope); r != nil {
			out.add(r)
		}
	}
	return out
}

// absent yields what is pending and not there.
func (sub *subscription) absent(t *typeCache, scope string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for n := range sub.pending {
			if t.lookup(n, scope) == nil && !yield(n) {
				return
			}
		}
	}
}

func (sub *subscription) takeNamed(t *typeCache, scope string, out *taken) {
	given := make(map[string]struct{}, len(sub.pending))
	for len(sub.pending) > 0 {
		names := slices.Sorted(maps.Keys(sub.pending))
		sub.pending = map[string]struct{}{}
		for _, n := range names {
			r := t.lookup(n, scope)
			if r == nil {
				out.removed = append(out.removed, n)
				continue
			}
			if _, twice := given[r.Name.Name]; !twice {
				given[r.Name.Name] = struct{}{}
				out.add(r)
				sub.follow(t, scope, r.Group, nil)
			}
		}
	}
}

func (s *stream) responseLocked(url string, sub *subscription, version uint64, t taken, removed []string) *response {
	s.nonce++
	nonce := strconv.FormatUint(s.nonce, 10)
	sub.sent[nonce] = sub.since
	sub.status.Sent = nonce
	sub.status.Pushes++
	return &response{rest: &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: strconv.FormatUint(version, 10),
		TypeUrl:           url,
		Nonce:             nonce,
		RemovedResources:  removed,
	}, resources: t.resources, size: t.size}
}

// status returns how the client stands.
func (s *stream) status() map[string]TypeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]TypeStatus, len(s.subs))
	for url, sub := range s.subs {
		st := sub.status
		st.Synced = !sub.due() && len(sub.sent) == 0 && st.LastNack == ""
		out[url] = st
	}
	return out
}
