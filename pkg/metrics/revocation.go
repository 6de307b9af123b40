package metrics

import "github.com/prometheus/client_golang/prometheus"

// Revocations counts what certificate revocation lists bring about.
type Revocations struct {
	rejected, untracked *prometheus.CounterVec
	failures            prometheus.Counter
	lists               prometheus.Gauge
}

// NewRevocations registers the families.
func NewRevocations(reg prometheus.Registerer) *Revocations {
	r := &Revocations{
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_crl_policy_rejections_total",
			Help: "Connections refused or ended because of a revoked certificate.",
		}, []string{"reporter"}),
		untracked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_crl_untracked_connections_total",
			Help: "Connections that a later revocation will not end.",
		}, []string{"reporter"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "culvert_ztunnel_crl_load_failures_total",
			Help: "Attempts to read the revocation lists that failed; the last good ones stay in force.",
		}),
		lists: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "culvert_ztunnel_crl_lists",
			Help: "Certificate revocation lists in force.",
		}),
	}
	reg.MustRegister(r.rejected, r.untracked, r.failures, r.lists)
	return r
}

// Rejected counts a connection; reporter is "source" or "destination".
func (r *Revocations) Rejected(reporter string) { r.rejected.WithLabelValues(reporter).Inc() }

// Untracked counts a connection that cannot be checked again.
func (r *Revocations) Untracked(reporter string) { r.untracked.WithLabelValues(reporter).Inc() }

// Loaded notes an attempt to read the lists, and how many are in force after it.
func (r *Revocations) Loaded(lists int, err error) {
	if err != nil {
		r.failures.Inc()
	}
	r.lists.Set(float64(lists))
}
