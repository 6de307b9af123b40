package proxy

import (
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Metrics are what we measure beyond upstream's families. Counters move when
// something fails or waits; gauges are read off the pods at a scrape. A nil
// *Metrics counts nothing.
type Metrics struct {
	node       *Node
	failures   *prometheus.CounterVec
	handshakes *prometheus.CounterVec
	abuse      *prometheus.CounterVec
	queueing   delays

	mu     sync.Mutex
	dryRun map[mesh.PolicyName]uint64 // policies that matched without being enforced
}

// maxDryRun bounds how many policies have a series of their own.
const maxDryRun = 1000

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("culvert_ztunnel_"+name, help, labels, nil)
}

var (
	openConnections = describe("connections_open", "Connections that are open at present.", "reporter")
	openBytes       = describe("connections_open_bytes", "Bytes that the connections which are open at present have carried.", "reporter", "direction")
	tunnelsOpen     = describe("tunnels", "Tunnels, that is TLS connections to or from other proxies, at present.", "role")
	streamsOpen     = describe("tunnel_streams", "Connections inside tunnels at present.", "role")
	streamsBusiest  = describe("tunnel_streams_max", "Connections inside the fullest tunnel at present.", "role")
	queueDelay      = describe("tunnel_queue_seconds", "How long data that had to wait for its turn on a tunnel waited.")
	bufferBytes     = describe("buffer_bytes", "Bytes of the node's buffer budget that tunnels hold at present.")
	bufferLimit     = describe("buffer_limit_bytes", "The node's buffer budget, in bytes.")
	dryRunMatches   = describe("policy_dry_run_matches_total", "Connections that a dry-run policy matched.", "namespace", "policy")
	gauges          = []*prometheus.Desc{openConnections, openBytes, tunnelsOpen, streamsOpen, streamsBusiest, queueDelay, bufferBytes, bufferLimit, dryRunMatches}
)

// NewMetrics registers the family of a node and becomes what it counts with.
func NewMetrics(reg prometheus.Registerer, n *Node) *Metrics {
	m := &Metrics{
		node: n,
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_ztunnel_connections_failed_total",
			Help: "Connections that failed, by reason, a word of the list that access log and status share.",
		}, []string{"reporter", "reason"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_ztunnel_handshake_failures_total",
			Help: "Tunnels that could not be made, by reason.",
		}, []string{"role", "reason"}),
		abuse: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_ztunnel_tunnel_abuse_total",
			Help: "Peers that lost a tunnel or were refused one because they did too much of something, by what.",
		}, []string{"reason"}),
		dryRun: map[mesh.PolicyName]uint64{},
	}
	reg.MustRegister(m.failures, m.handshakes, m.abuse, m)
	n.Observed = m
	return m
}

// failed counts a connection that failed.
func (m *Metrics) failed(r metrics.Reporter, why reason.Reason) {
	if m != nil {
		m.failures.WithLabelValues(r.String(), string(why)).Inc()
	}
}

// roles of a tunnel.
const (
	client = "client"
	server = "server"
)

func (m *Metrics) handshakeFailed(role string, err error) {
	if m != nil {
		m.handshakes.WithLabelValues(role, string(reason.Of(err))).Inc()
	}
}

// dialFailed is h2.PoolConfig.ConnError.
func (m *Metrics) dialFailed(_ hbone.Peer, err error) { m.handshakeFailed(client, err) }

// acceptFailed is h2.ServerConfig.ConnError.
func (m *Metrics) acceptFailed(_ netip.AddrPort, err error) { m.handshakeFailed(server, err) }

// abused is h2.ServerConfig.Abused.
func (m *Metrics) abused(_ netip.AddrPort, what h2.Abuse) {
	if m != nil {
		m.abuse.WithLabelValues(string(what)).Inc()
	}
}

// queued is h2.Settings.QueueDelay.
func (m *Metrics) queued(d time.Duration) {
	if m != nil && d > 0 {
		m.queueing.observe(d)
	}
}

// matchedDry counts connections that dry-run policies matched.
func (m *Metrics) matchedDry(names []mesh.PolicyName) {
	if m == nil || len(names) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if _, known := m.dryRun[name]; !known && len(m.dryRun) >= maxDryRun {
			name = mesh.PolicyName{Namespace: "unknown", Name: "unknown"}
		}
		m.dryRun[name]++
	}
}

// delays is a histogram of durations whose bounds are powers of two of
// microseconds. Observing costs two atomic additions and no look at a clock.
type delays struct {
	buckets [21]atomic.Uint64 // bucket i: below 2^i µs; the last one: everything else
	sum     atomic.Uint64     // nanoseconds
}

func (h *delays) observe(d time.Duration) {
	h.buckets[min(bits.Len64(uint64(d.Microseconds())), len(h.buckets)-1)].Add(1)
	h.sum.Add(uint64(d))
}

// metric returns the histogram from 64 µs up, each bound four times the last.
func (h *delays) metric(desc *prometheus.Desc) prometheus.Metric {
	cumulative := map[float64]uint64{}
	var count uint64
	for i := range h.buckets {
		count += h.buckets[i].Load()
		if i >= 6 && i%2 == 0 && i < len(h.buckets)-1 {
			cumulative[float64(uint64(1)<<i)/1e6] = count
		}
	}
	return prometheus.MustNewConstHistogram(desc, count, float64(h.sum.Load())/1e9, cumulative)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range gauges {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, r := range []metrics.Reporter{metrics.Source, metrics.Destination} {
		open := m.node.Metrics.Live(r)
		gauge(openConnections, float64(open.Connections), r.String())
		gauge(openBytes, float64(open.Sent), r.String(), "response")
		gauge(openBytes, float64(open.Received), r.String(), "request")
	}
	for role, t := range m.node.tunnels() {
		gauge(tunnelsOpen, float64(t.tunnels), role)
		gauge(streamsOpen, float64(t.streams), role)
		gauge(streamsBusiest, float64(t.busiest), role)
	}
	used, size := m.node.Budget.Used()
	gauge(bufferBytes, float64(used))
	gauge(bufferLimit, float64(size))
	ch <- m.queueing.metric(queueDelay)
	for name, n := range m.dryRuns() {
		ch <- prometheus.MustNewConstMetric(dryRunMatches, prometheus.CounterValue, float64(n), name.Namespace, name.Name)
	}
}

// dryRuns returns the counts of the policies that still exist, and forgets the rest.
func (m *Metrics) dryRuns() map[mesh.PolicyName]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[mesh.PolicyName]uint64, len(m.dryRun))
	for name, n := range m.dryRun {
		if m.node.Mesh.Policy(name) == nil && name.Name != "unknown" {
			delete(m.dryRun, name)
			continue
		}
		out[name] = n
	}
	return out
}

// tunnelCount is how many tunnels there are, and how full.
type tunnelCount struct{ tunnels, streams, busiest int }

func (t *tunnelCount) add(list []h2.ConnInfo) {
	for i := range list {
		t.tunnels++
		t.streams += list[i].Streams
		t.busiest = max(t.busiest, list[i].Streams)
	}
}

// tunnels counts the tunnels of all pods by role.
func (n *Node) tunnels() map[string]tunnelCount {
	var out, in tunnelCount
	for _, p := range n.running() {
		out.add(p.pool.Snapshot())
		in.add(p.server.Snapshot())
	}
	return map[string]tunnelCount{client: out, server: in}
}

// Tunnel is one tunnel of a pod, for people.
type Tunnel struct {
	Pod     string        `json:"pod"`
	Role    string        `json:"role"`
	Local   string        `json:"local"`
	Remote  string        `json:"remote"`
	Source  string        `json:"source,omitempty"` // whom we present ourselves as
	Peer    string        `json:"peer,omitempty"`   // who the other side is, or may be
	Opened  time.Time     `json:"opened"`
	Streams int           `json:"streams"`
	Total   uint64        `json:"total"`
	RTT     time.Duration `json:"rttNanoseconds"`
	State   string        `json:"state"`
}

// Tunnels lists the tunnels of all pods, by pod and role.
func (n *Node) Tunnels() []Tunnel {
	out := []Tunnel{}
	for _, p := range n.running() {
		for role, list := range map[string][]h2.ConnInfo{client: p.pool.Snapshot(), server: p.server.Snapshot()} {
			for _, c := range list {
				out = append(out, describeTunnel(p.info.String(), role, c))
			}
		}
	}
	slices.SortFunc(out, func(a, b Tunnel) int {
		return strings.Compare(a.Pod+a.Role+a.Remote+a.Local, b.Pod+b.Role+b.Remote+b.Local)
	})
	return out
}

func describeTunnel(pod, role string, c h2.ConnInfo) Tunnel {
	var peers []string
	for _, id := range c.Peer.Expect {
		peers = append(peers, id.String())
	}
	return Tunnel{
		Pod: pod, Role: role, Local: addrText(c.Local), Remote: addrText(c.Peer.Addr), Source: c.Peer.Source.String(),
		Peer: strings.Join(peers, ", "), Opened: c.Opened, Streams: c.Streams, Total: c.Total, RTT: c.RTT, State: c.State,
	}
}
