package xds

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/token"
)

// Client is who is at the other end of a stream.
type Client struct {
	ID      string // of the node
	Kind    string // "ztunnel", "waypoint"
	Node    string // the Kubernetes node it runs on, when it tells
	Scope   string // which scoped resources it sees
	Address string
	Since   time.Time
	types   []string // that it may ask for
}

// Proxy is a connected client as status shows it.
type Proxy struct {
	ID      string                `json:"id"`
	Kind    string                `json:"kind"`
	Node    string                `json:"node,omitempty"`
	Scope   string                `json:"gateway,omitempty"`
	Address string                `json:"address"`
	Since   time.Time             `json:"since"`
	Types   map[string]TypeStatus `json:"types"`
}

// Config configures a Server.
type Config struct {
	Cache *Cache
	// Order is the order in which types are pushed: what others refer to first.
	Order []string
	Auth  Authenticator
	Kinds Kinds
	// Account returns the service account that a gateway runs as when it is not
	// named like it, else "". nil = all are.
	Account func(namespace, gateway string) string
	// Ready is closed when the cache has its first content; nothing is answered
	// before.
	Ready   <-chan struct{}
	Log     *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // nil = none
}

// Server answers discovery streams.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	metrics *serverMetrics
}

// NewServer returns a server.
func NewServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, metrics: newServerMetrics(cfg.Metrics)}
}

// Register adds the service to a gRPC server, whose codec must be Codec.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// DeltaAggregatedResources implements the discovery service.
func (s *Server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	claims, err := authenticate(g.Context(), s.cfg.Auth) // before anything is read or held for it
	if err != nil {
		s.cfg.Log.Warn("proxy refused", "err", err)
		return err
	}
	select {
	case <-s.cfg.Ready:
	case <-g.Context().Done():
		return ended(context.Cause(g.Context()))
	}
	first, err := g.Recv()
	if err != nil {
		return ended(err)
	}
	client, err := s.identify(g.Context(), claims, first.GetNode())
	if err != nil {
		s.cfg.Log.Warn("proxy refused", "node", first.GetNode().GetId(), "err", err)
		return err
	}
	st := newStream(client, s.cfg.Order)
	s.attach(st)
	defer s.detach(st)
	return s.serve(g, st, first)
}

func (s *Server) identify(ctx context.Context, claims *token.Claims, node *corev3.Node) (Client, error) {
	if node.GetId() == "" {
		return Client{}, status.Error(codes.InvalidArgument, "the first request has no node id")
	}
	c, err := authorize(claims, node, s.cfg.Kinds, s.cfg.Account)
	if err != nil {
		return Client{}, err
	}
	c.ID, c.Since = node.GetId(), time.Now()
	if p, ok := peer.FromContext(ctx); ok {
		c.Address = p.Addr.String()
	}
	return c, nil
}

func (s *Server) attach(st *stream) {
	c := s.cfg.Cache
	c.mu.Lock()
	c.streams[st] = struct{}{}
	c.mu.Unlock()
	s.metrics.connected.WithLabelValues(st.client.Kind).Inc()
	s.cfg.Log.Info("proxy connected", "node", st.client.ID, "address", st.client.Address)
}

func (s *Server) detach(st *stream) {
	c := s.cfg.Cache
	c.mu.Lock()
	delete(c.streams, st)
	c.mu.Unlock()
	s.metrics.connected.WithLabelValues(st.client.Kind).Dec()
	s.cfg.Log.Info("proxy disconnected", "node", st.client.ID, "address", st.client.Address)
}

// serve reads requests here and sends from another goroutine, so that a client
// that does not read can still be heard, and the other way round.
func (s *Server) serve(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, st *stream, first *discovery.DeltaDiscoveryRequest) error {
	ctx, cancel := context.WithCancelCause(g.Context())
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(nil)
	sender.Go(func() { cancel(s.send(ctx, g, st)) })
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	go func() { cancel(receive(ctx, g, requests)) }() // ends when the stream has: nothing else ends a Recv
	for req := first; ; {
		if err := s.request(st, req); err != nil {
			return err
		}
		select {
		case req = <-requests:
		case <-ctx.Done():
			return ended(context.Cause(ctx))
		}
	}
}

// receive passes on requests until the stream ends, and returns why.
func receive(ctx context.Context, g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, to chan<- *discovery.DeltaDiscoveryRequest) error {
	for {
		req, err := g.Recv()
		if err != nil {
			return err
		}
		select {
		case to <- req:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ended is the result of a stream that the client closed, or that whose context
// ended by io.EOF: in order.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *Server) request(st *stream, req *discovery.DeltaDiscoveryRequest) error {
	if !slices.Contains(st.client.types, req.GetTypeUrl()) {
		return status.Errorf(codes.PermissionDenied, "a %s may not ask for %s", st.client.Kind, req.GetTypeUrl())
	}
	took, nack := st.request(s.cfg.Cache, req, time.Now())
	switch {
	case nack != "":
		s.metrics.rejects.WithLabelValues(req.GetTypeUrl()).Inc()
		s.cfg.Log.Warn("proxy refused configuration", "node", st.client.ID, "type", req.GetTypeUrl(), "reason", nack)
	case took > 0:
		s.metrics.convergence.Observe(took.Seconds())
	}
	return nil
}

// send pushes until the stream ends. Send blocks while the client does not read;
// what changes meanwhile is gathered in the stream.
func (s *Server) send(ctx context.Context, g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, st *stream) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-st.wake:
		}
		for _, p := range st.collect(s.cfg.Cache) {
			if err := g.SendMsg(p); err != nil {
				return err
			}
			s.metrics.pushes.WithLabelValues(p.rest.TypeUrl).Inc()
			s.metrics.size.WithLabelValues(p.rest.TypeUrl).Observe(float64(p.size))
		}
	}
}

// Proxies returns the connected clients, by node id.
func (s *Server) Proxies() []Proxy {
	c := s.cfg.Cache
	c.mu.RLock()
	streams := make([]*stream, 0, len(c.streams))
	for st := range c.streams {
		streams = append(streams, st)
	}
	c.mu.RUnlock()
	out := make([]Proxy, 0, len(streams))
	for _, st := range streams {
		out = append(out, Proxy{ID: st.client.ID, Kind: st.client.Kind, Node: st.client.Node, Scope: st.client.Scope,
			Address: st.client.Address, Since: st.client.Since, Types: st.status()})
	}
	slices.SortFunc(out, func(a, b Proxy) int { return cmp.Or(cmp.Compare(a.ID, b.ID), a.Since.Compare(b.Since)) })
	return out
}
