package metrics

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Certificates counts signing calls.
type Certificates struct {
	calls *prometheus.CounterVec
	took  prometheus.Histogram
}

// NewCertificates registers the family.
func NewCertificates(reg prometheus.Registerer) *Certificates {
	c := &Certificates{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_certificate_requests_total",
			Help: "Certificate requests to the CA, by result.",
		}, []string{"result"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "culvert_certificate_request_duration_seconds",
			Help:    "How long the CA took to answer.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10},
		}),
	}
	reg.MustRegister(c.calls, c.took)
	return c
}

// Issued counts one call; it is certs.CacheConfig.Issued.
func (c *Certificates) Issued(_ mesh.Identity, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	c.calls.WithLabelValues(result).Inc()
	c.took.Observe(took.Seconds())
}

var certificateExpiry = prometheus.NewDesc("culvert_certificate_expiration_timestamp_seconds",
	"When the certificate that is held for an identity ends.", []string{"identity"}, nil)

// maxExpiries bounds the series: those that end first are there.
const maxExpiries = 1000

// expiries reads a certificate cache at every scrape.
type expiries struct {
	all iter.Seq2[mesh.Identity, time.Time]
}

// CertificateExpiry exposes when certificates end; certs.Cache.Expirations says.
func CertificateExpiry(reg prometheus.Registerer, all iter.Seq2[mesh.Identity, time.Time]) {
	reg.MustRegister(expiries{all})
}

// Describe implements prometheus.Collector.
func (e expiries) Describe(ch chan<- *prometheus.Desc) { ch <- certificateExpiry }

// Collect implements prometheus.Collector.
func (e expiries) Collect(ch chan<- prometheus.Metric) {
	known := maps.Collect(e.all) // sending may block, and all may hold a lock
	soonest := slices.SortedFunc(maps.Keys(known), func(a, b mesh.Identity) int {
		return cmp.Or(known[a].Compare(known[b]), cmp.Compare(a.String(), b.String()))
	})
	for _, id := range soonest[:min(len(soonest), maxExpiries)] {
		ch <- prometheus.MustNewConstMetric(certificateExpiry, prometheus.GaugeValue, float64(known[id].Unix()), id.String())
	}
}

// XDS is what a proxy counts of its stream to the control plane. It is an
// xds.Metrics.
type XDS struct {
	terminations    *prometheus.CounterVec
	messages, bytes *prometheus.CounterVec

	up   atomic.Bool  // a stream has answered and has not ended
	lost atomic.Int64 // Unix nanoseconds: when the last such stream ended, or the start
}

// NewXDS registers the family.
func NewXDS(reg prometheus.Registerer) *XDS {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_xds_" + name, Help: help}, []string{label})
	}
	m := &XDS{
		terminations: counter("connection_terminations_total", "Streams to the control plane that ended.", "reason"),
		messages:     counter("message_total", "Responses received.", "url"),
		bytes:        counter("message_bytes_total", "Bytes of the responses received.", "url"),
	}
	m.lost.Store(time.Now().UnixNano())
	stale := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "culvert_control_plane_staleness_seconds",
		Help: "For how long the control plane has been away; 0 while it is there.",
	}, func() float64 { return m.Staleness().Seconds() })
	reg.MustRegister(m.terminations, m.messages, m.bytes, stale)
	return m
}

// Staleness is for how long nobody has told us what changes, since the start if
// nobody has yet.
func (m *XDS) Staleness() time.Duration {
	if m.up.Load() {
		return 0
	}
	return max(0, time.Since(time.Unix(0, m.lost.Load())))
}

// ConnectionTerminated counts the end of a stream.
func (m *XDS) ConnectionTerminated(reason string) {
	m.terminations.WithLabelValues(reason).Inc()
	if m.up.Swap(false) {
		m.lost.Store(time.Now().UnixNano())
	}
}

// Message counts a response and its size in bytes.
func (m *XDS) Message(typeURL string, bytes int) {
	m.up.Store(true)
	m.messages.WithLabelValues(typeURL).Inc()
	m.bytes.WithLabelValues(typeURL).Add(float64(bytes))
}

// KnowledgeAge exposes how old what a proxy knows of the mesh is; heard says up to
// when it was current, as xds.Client.Heard does.
func KnowledgeAge(reg prometheus.Registerer, heard func() time.Time) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "culvert_knowledge_age_seconds",
		Help: "How old what is known of the mesh is, also when a predecessor handed it over; 0 while the control plane is there, -1 if nothing was ever heard.",
	}, func() float64 {
		at := heard()
		if at.IsZero() {
			return -1
		}
		return max(0, time.Since(at).Round(time.Millisecond).Seconds())
	}))
}
