package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// Limits bound what the queries of a node use. A zero field is its default.
type Limits struct {
	CacheBytes int // of servers' answers; default 16 MiB
	Waiting    int // queries that wait for somebody else; default 2048
	PodWaiting int // the same, of one pod; default 256
	Conns      int // connections over TCP that are served; default 1024
	PodConns   int // the same, of one pod; default 64
	Queued     int // connections that wait to be served; default 2048
	PodQueued  int // the same, of one pod; default 512
}

func (l Limits) orDefaults() Limits {
	for _, f := range []struct {
		v *int
		d int
	}{{&l.CacheBytes, 16 << 20}, {&l.Waiting, 2048}, {&l.PodWaiting, 256}, {&l.Conns, 1024}, {&l.PodConns, 64}, {&l.Queued, 2048}, {&l.PodQueued, 512}} {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	return l
}

// NodeConfig configures a Node.
type NodeConfig struct {
	View workloads.View
	Zone Zone
	// Servers are the node's own name servers, asked when it is not known which one
	// the pod meant.
	Servers  func() []netip.AddrPort
	Limits   Limits
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Node is what the pods of a node share.
type Node struct {
	cfg     NodeConfig
	limits  Limits
	cache   *cache
	metrics *Metrics
	waiting gate
	queued  gate
	conns   places
}

// NewNode registers the metrics. It starts nothing.
func NewNode(cfg NodeConfig) *Node {
	l := cfg.Limits.orDefaults()
	n := &Node{cfg: cfg, limits: l, cache: newCache(l.CacheBytes), metrics: NewMetrics(cfg.Registry)}
	n.waiting.max, n.queued.max, n.conns = int64(l.Waiting), int64(l.Queued), make(places, l.Conns)
	n.metrics.watch(cfg.Registry, n)
	return n
}

// gate lets a number of things in at once.
type gate struct {
	n   atomic.Int64
	max int64
}

func (g *gate) enter() bool {
	if g.n.Add(1) > g.max {
		g.n.Add(-1)
		return false
	}
	return true
}

func (g *gate) leave() { g.n.Add(-1) }

// tally counts what is under way. Unlike a WaitGroup it lets something begin while
// somebody waits for the end.
type tally struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n is 0 next; nil: nobody waits
}

func (t *tally) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

func (t *tally) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// wait returns when nothing is under way.
func (t *tally) wait() {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	<-none
}

// enterBoth enters a pod's gate and the node's, or neither.
func enterBoth(pod, node *gate) bool {
	if !pod.enter() {
		return false
	}
	if !node.enter() {
		pod.leave()
		return false
	}
	return true
}

// places are for those that may wait until one is free, in the order in which they
// came.
type places chan struct{}

// enter takes a place; ctx bounds the wait.
func (p places) enter(ctx context.Context) bool {
	select {
	case p <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p places) leave() { <-p }

var (
	errBusy          = errors.New("too many DNS queries wait for name servers")
	errUnknownClient = errors.New("the mesh does not know this pod yet")
)

// PodConfig is what a Server is told of its pod.
type PodConfig struct {
	Name string // in the log
	// Known returns the pod's workload, nil as long as it is not known. It must not
	// block.
	Known func() *mesh.Workload
	// Learn waits for it until ctx ends.
	Learn func(ctx context.Context) (*mesh.Workload, error)
	Net   Net // opens sockets to name servers in the pod's namespace
	// Original returns where a datagram was going that arrived at local from client.
	Original func(local, client netip.AddrPort) (netip.AddrPort, error)
}

// NewServer returns the Server of a pod. It does nothing before Serve.
func (n *Node) NewServer(cfg PodConfig) *Server {
	s := &Server{node: n, cfg: cfg, forwarder: newForwarder(cfg.Net, n.cfg.Servers, n.cache), patience: seatTime, open: map[*conn]struct{}{}}
	s.waiting.max, s.queued.max, s.conns = int64(n.limits.PodWaiting), int64(n.limits.PodQueued), make(places, n.limits.PodConns)
	s.life, s.end = context.WithCancelCause(context.Background())
	return s
}
