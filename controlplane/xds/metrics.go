package xds

import "github.com/prometheus/client_golang/prometheus"

// serverMetrics are named like Istio's, whose dashboards know them.
type serverMetrics struct {
	connected   *prometheus.GaugeVec
	pushes      *prometheus.CounterVec
	rejects     *prometheus.CounterVec
	convergence prometheus.Histogram
	size        *prometheus.HistogramVec
}

func newServerMetrics(reg prometheus.Registerer) *serverMetrics {
	m := &serverMetrics{
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pilot_xds",
			Help: "Proxies connected by xDS."}, []string{"kind"}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_xds_pushes",
			Help: "Responses sent."}, []string{"type"}),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_total_xds_rejects",
			Help: "Responses that a proxy refused."}, []string{"type"}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_proxy_convergence_time",
			Help:    "Seconds from a change until a proxy has accepted it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3, 5, 10, 30}}),
		size: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pilot_xds_config_size_bytes",
			Help: "Bytes of the resources of one response.", Buckets: prometheus.ExponentialBuckets(256, 8, 8)}, []string{"type"}),
	}
	if reg != nil {
		reg.MustRegister(m.connected, m.pushes, m.rejects, m.convergence, m.size)
	}
	return m
}
