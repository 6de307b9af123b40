package xdstest

import (
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"
)

// stream is one client's. Its maps belong to the goroutine of
// DeltaAggregatedResources; raw and ended to the server's lock.
type stream struct {
	types map[string]*subscription
	wake  chan struct{}
	done  chan error
	raw   []*discovery.DeltaDiscoveryResponse
	nonce int
}

// subscription is what one client has of one type.
type subscription struct {
	wildcard bool
	names    map[string]bool
	versions map[string]string // as the client has them
	absent   map[string]bool   // names that it was told do not exist
	owed     bool              // an answer is due even if empty
}

func (st *stream) wakeUp() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (st *stream) end(err error) {
	select {
	case st.done <- err:
	default:
	}
}

// DeltaAggregatedResources implements the service.
func (s *Server) DeltaAggregatedResources(gs discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	st := &stream{types: make(map[string]*subscription), wake: make(chan struct{}, 1), done: make(chan error, 1)}
	md, _ := metadata.FromIncomingContext(gs.Context())
	s.mu.Lock()
	s.streams[st] = true
	s.headers = append(s.headers, md)
	s.mu.Unlock()
	defer s.forget(st)
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	go receive(gs, requests)
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return gs.Context().Err()
			}
			st.take(r)
			s.note(r)
		case <-st.wake:
		case err := <-st.done:
			return err
		}
		if err := s.push(gs, st); err != nil {
			return err
		}
	}
}

func (s *Server) forget(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

func receive(gs discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, out chan<- *discovery.DeltaDiscoveryRequest) {
	defer close(out)
	for {
		r, err := gs.Recv()
		if err != nil {
			return
		}
		select {
		case out <- r:
		case <-gs.Context().Done():
			return
		}
	}
}

// take notes what a request subscribes to.
func (st *stream) take(r *discovery.DeltaDiscoveryRequest) {
	sub := st.types[r.GetTypeUrl()]
	if sub == nil {
		sub = &subscription{
			wildcard: len(r.GetResourceNamesSubscribe()) == 0,
			names:    make(map[string]bool), versions: make(map[string]string), absent: make(map[string]bool), owed: true,
		}
		for name, version := range r.GetInitialResourceVersions() {
			if version != "" || sub.wildcard {
				sub.versions[name] = version
			}
		}
		st.types[r.GetTypeUrl()] = sub
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		sub.names[name] = true
		delete(sub.absent, name)
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(sub.names, name)
		delete(sub.versions, name)
	}
}

// push sends what each type lacks.
func (s *Server) push(gs discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, st *stream) error {
	s.mu.Lock()
	raw := st.raw
	st.raw = nil
	s.mu.Unlock()
	for _, resp := range raw {
		if err := s.send(gs, st, resp); err != nil {
			return err
		}
	}
	if s.held() {
		return nil
	}
	for typeURL, sub := range st.types {
		resp := sub.diff(typeURL, s.snapshot(typeURL))
		if resp == nil {
			continue
		}
		if err := s.send(gs, st, resp); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) send(gs discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, st *stream, resp *discovery.DeltaDiscoveryResponse) error {
	st.nonce++
	resp.Nonce = nonce(st.nonce)
	s.mu.Lock()
	s.sent = append(s.sent, resp)
	s.mu.Unlock()
	return gs.Send(resp)
}

// diff is the response that brings the client up to date, or nil.
func (sub *subscription) diff(typeURL string, resources map[string]*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL}
	found := make(map[string]bool)
	for name, r := range resources {
		if !sub.wants(r, found) {
			continue
		}
		if version, ok := sub.versions[name]; !ok || version != r.GetVersion() {
			sub.versions[name] = r.GetVersion()
			resp.Resources = append(resp.Resources, r)
		}
	}
	for name := range sub.versions {
		if resources[name] == nil {
			delete(sub.versions, name)
			sub.absent[name] = true
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	for name := range sub.names {
		if name != "*" && !found[name] && !sub.absent[name] {
			sub.absent[name] = true
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	if !sub.owed && len(resp.Resources)+len(resp.RemovedResources) == 0 {
		return nil
	}
	sub.owed = false
	slices.SortFunc(resp.Resources, func(a, b *discovery.Resource) int {
		if a.GetName() < b.GetName() {
			return -1
		}
		return 1
	})
	slices.Sort(resp.RemovedResources)
	return resp
}

// wants reports whether the resource is subscribed to by its name or an alias.
func (sub *subscription) wants(r *discovery.Resource, found map[string]bool) bool {
	wanted := sub.wildcard
	for _, name := range append([]string{r.GetName()}, r.GetAliases()...) {
		if sub.names[name] {
			found[name], wanted = true, true
		}
	}
	return wanted
}
