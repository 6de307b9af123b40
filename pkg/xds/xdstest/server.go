// Package xdstest is a delta xDS server for tests: real gRPC on loopback, whose
// resources, failures and streams a test scripts.
//
//	s := xdstest.New(t)
//	s.Set(typeURL, "name", "v1", message)     pushed to everyone who subscribed
//	s.CutAfter(1000)                          break the connection mid-message
//	s.Stop(); s.Start()                       the control plane goes and returns
//
// All methods may be called from any goroutine.
package xdstest

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Server is a running server; see New.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	t       testing.TB
	tls     *tls.Config
	options []grpc.ServerOption
	addr    string

	mu        sync.Mutex
	grpc      *grpc.Server // nil while stopped
	listener  *listener
	served    chan struct{}
	resources map[string]map[string]*discovery.Resource // by type and name
	streams   map[*stream]bool
	log       []*discovery.DeltaDiscoveryRequest
	headers   []metadata.MD
	sent      []*discovery.DeltaDiscoveryResponse
	changed   chan struct{}
	hold      bool
}

// New starts a server on loopback; the test's end stops it. cfg may be nil for
// plain text; options are added to the gRPC server's.
func New(t testing.TB, cfg *tls.Config, options ...grpc.ServerOption) *Server {
	t.Helper()
	s := &Server{
		t: t, tls: cfg, options: options, addr: "127.0.0.1:0",
		resources: make(map[string]map[string]*discovery.Resource),
		streams:   make(map[*stream]bool),
		changed:   make(chan struct{}),
	}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// URL is the server's address with its scheme. It stays the same across Stop and
// Start.
func (s *Server) URL() string {
	if s.tls != nil {
		return "https://" + s.addr
	}
	return "http://" + s.addr
}

// Start listens again after Stop. The resources are still there.
func (s *Server) Start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatalf("xdstest: %v", err)
	}
	s.addr = l.Addr().String()
	options := append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(200 << 20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, s.options...)
	if s.tls != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(s.tls)))
	}
	s.listener = newListener(l)
	s.grpc, s.served = grpc.NewServer(options...), make(chan struct{})
	discovery.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	go serve(s.grpc, s.listener, s.served)
}

func serve(g *grpc.Server, l net.Listener, done chan<- struct{}) {
	defer close(done)
	_ = g.Serve(l)
}

// Stop closes the listener and every connection at once.
func (s *Server) Stop() {
	s.mu.Lock()
	g, served := s.grpc, s.served
	s.grpc = nil
	s.mu.Unlock()
	if g != nil {
		g.Stop()
		<-served
	}
}

// CutAfter lets n more bytes through to clients, then resets their connections,
// once. What is being written then arrives in part.
func (s *Server) CutAfter(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener.cutAfter(n)
}

// EndStreams ends every stream; nil ends them in order.
func (s *Server) EndStreams(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		st.end(err)
	}
}

// Hold delays pushes by Set and Remove until it is called with false, which sends
// what has changed meanwhile.
func (s *Server) Hold(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = hold
	s.wakeLocked()
}

// Set adds or replaces a resource; body may be an *anypb.Any already.
func (s *Server) Set(typeURL, name, version string, body proto.Message, aliases ...string) {
	s.t.Helper()
	packed, ok := body.(*anypb.Any)
	if !ok {
		b, err := proto.Marshal(body)
		if err != nil {
			s.t.Fatalf("xdstest: %v", err)
		}
		packed = &anypb.Any{TypeUrl: typeURL, Value: b}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resources[typeURL] == nil {
		s.resources[typeURL] = make(map[string]*discovery.Resource)
	}
	s.resources[typeURL][name] = &discovery.Resource{Name: name, Version: version, Resource: packed, Aliases: aliases}
	s.wakeLocked()
}

// Remove deletes a resource.
func (s *Server) Remove(typeURL, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.resources[typeURL], name)
	s.wakeLocked()
}

// Push sends a response as it is on every stream, whatever was asked for.
func (s *Server) Push(resp *discovery.DeltaDiscoveryResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		st.raw = append(st.raw, proto.Clone(resp).(*discovery.DeltaDiscoveryResponse))
	}
	s.wakeLocked()
}

func (s *Server) wakeLocked() {
	for st := range s.streams {
		st.wakeUp()
	}
}

// Requests returns every request so far.
func (s *Server) Requests() []*discovery.DeltaDiscoveryRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Responses returns every response that was sent so far.
func (s *Server) Responses() []*discovery.DeltaDiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

// Headers returns the metadata of every stream so far.
func (s *Server) Headers() []metadata.MD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.headers)
}

// Await waits until a request satisfies match and returns the first that does,
// from the from-th on.
func (s *Server) Await(ctx context.Context, from int, match func(*discovery.DeltaDiscoveryRequest) bool) *discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	for {
		s.mu.Lock()
		log, changed := s.log, s.changed
		s.mu.Unlock()
		for ; from < len(log); from++ {
			if match(log[from]) {
				return log[from]
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.t.Fatalf("xdstest: awaited request did not come: %v", ctx.Err())
		}
	}
}

func (s *Server) note(r *discovery.DeltaDiscoveryRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, r)
	close(s.changed)
	s.changed = make(chan struct{})
}

// snapshot copies the resources of a type.
func (s *Server) snapshot(typeURL string) map[string]*discovery.Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.resources[typeURL])
}

func (s *Server) held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hold
}

func nonce(n int) string { return "nonce-" + strconv.Itoa(n) }
