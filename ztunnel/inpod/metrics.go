package inpod

import "github.com/prometheus/client_golang/prometheus"

// Metrics count the proxies of pods.
type Metrics struct {
	Active, Pending  prometheus.Gauge
	Started, Stopped prometheus.Counter
}

// NewMetrics registers the family workload_manager_*.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		Active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "workload_manager_active_proxy_count", Help: "Pods that are served."}),
		Pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "workload_manager_pending_proxy_count", Help: "Pods whose listeners could not be opened yet."}),
		Started: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "workload_manager_proxies_started_total", Help: "Pods that have been taken into the mesh."}),
		Stopped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "workload_manager_proxies_stopped_total", Help: "Pods that are no longer served."}),
	}
	reg.MustRegister(m.Active, m.Pending, m.Started, m.Stopped)
	return m
}
