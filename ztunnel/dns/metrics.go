package dns

import (
	"cmp"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// seriesIdle is how long the series of workloads that left are kept.
const seriesIdle = 5 * time.Minute

// Metrics are the DNS families of a node: upstream's, by client, and our own.
type Metrics struct {
	requests, sent, failed *prometheus.CounterVec
	took                   *prometheus.HistogramVec
	refused                *prometheus.CounterVec

	mu      sync.Mutex
	clients map[clientLabels]*client
}

// clientLabels is what is told of a client.
type clientLabels struct{ service, revision string }

// client counts the pods that have the same labels.
type client struct {
	labels clientLabels
	pods   int
	since  time.Time // without any
}

// Reasons for which a query is refused, as metrics show them.
const (
	refusedBusy       = "too many queries wait"
	refusedConns      = "too many connections"
	refusedClient     = "client unknown"
	refusedMalformed  = "malformed"
	refusedNoUpstream = "no upstream answered"
)

// NewMetrics registers the families.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_dns_" + name, Help: help}, labels)
	}
	m := &Metrics{
		requests: counter("requests_total", "DNS requests of pods."),
		sent:     counter("upstream_requests_total", "DNS requests forwarded to name servers."),
		failed:   counter("upstream_failures_total", "Forwarded DNS requests that no name server answered."),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "istio_dns_upstream_request_duration_seconds",
			Help:    "How long name servers took to answer.",
			Buckets: []float64{.0005, .001, .01, .1, 1, 5},
		}, labels),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_ztunnel_dns_refused_total",
			Help: "DNS requests that were not answered as asked, by reason.",
		}, []string{"reason"}),
		clients: map[clientLabels]*client{},
	}
	reg.MustRegister(m, m.refused)
	return m
}

// watch exposes what a node holds at present.
func (m *Metrics) watch(reg prometheus.Registerer, n *Node) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "culvert_ztunnel_dns_" + name, Help: help}, value))
	}
	gauge("cache_entries", "Answers of name servers that are kept.", func() float64 { e, _ := n.cache.size(); return float64(e) })
	gauge("cache_bytes", "Memory that kept answers use.", func() float64 { _, b := n.cache.size(); return float64(b) })
	gauge("waiting", "DNS requests that wait for a name server or for the control plane.", func() float64 { return float64(n.waiting.n.Load()) })
	gauge("connections", "DNS connections over TCP that are served.", func() float64 { return float64(len(n.conns)) })
}

// families are those whose series belong to clients.
func (m *Metrics) families() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.sent, m.failed, m.took}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range m.families() {
		f.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.expire(time.Now())
	for _, f := range m.families() {
		f.Collect(ch)
	}
}

// expire drops the series of clients that left a while ago.
func (m *Metrics) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for l, c := range m.clients {
		if c.pods > 0 || now.Sub(c.since) < seriesIdle {
			continue
		}
		gone := prometheus.Labels{"source_canonical_service": l.service, "source_canonical_revision": l.revision}
		m.requests.DeletePartialMatch(gone)
		m.sent.DeletePartialMatch(gone)
		m.failed.DeletePartialMatch(gone)
		m.took.DeletePartialMatch(gone)
		delete(m.clients, l)
	}
}

func labelsOf(w *mesh.Workload) clientLabels {
	if w == nil {
		return clientLabels{"unknown", "unknown"}
	}
	return clientLabels{cmp.Or(w.CanonicalName, "unknown"), cmp.Or(w.CanonicalRevision, "unknown")}
}

// join counts a pod with its labels until leave.
func (m *Metrics) join(l clientLabels) *client {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.clients[l]
	if c == nil {
		c = &client{labels: l}
		m.clients[l] = c
	}
	c.pods++
	return c
}

func (m *Metrics) leave(c *client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.pods--; c.pods == 0 {
		c.since = time.Now()
	}
}

// series is one label set.
type series struct {
	m                 *Metrics
	qtype, protocol   string
	service, revision string
}

func (s series) values() []string { return []string{s.qtype, s.protocol, s.service, s.revision} }

func (s series) request() { s.m.requests.WithLabelValues(s.values()...).Inc() }

// upstream counts a query that was forwarded.
func (s series) upstream(took time.Duration, err error) {
	v := s.values()
	s.m.sent.WithLabelValues(v...).Inc()
	s.m.took.WithLabelValues(v...).Observe(took.Seconds())
	if err != nil {
		s.m.failed.WithLabelValues(v...).Inc()
	}
}
