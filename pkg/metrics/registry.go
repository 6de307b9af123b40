// Package metrics holds the metric families that several components emit, under
// Istio's names and labels, so that existing dashboards and Kiali read them.
//
//	Flow (who talks to whom) ─▶ Series (its labels, resolved once and cached)
//	                              │
//	     TCP:  Series.Open(live byte counters) ─▶ Conn.Close(err)
//	     HTTP: RequestSeries.Observe(Response)
//	                              │  only atomic adds
//	     scrape ◀─ a collector reads the series, and live connections' bytes with them
//
// A series expires when one of its workloads is gone and nothing has used it for a
// while. Everything is safe for concurrent use.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry returns a registry with the collectors of the process
// (process_open_fds …) and of the Go runtime, and istio_build{component,tag}.
func NewRegistry(component, tag string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "istio_build",
		Help:        "Component and version that is running.",
		ConstLabels: prometheus.Labels{"component": component, "tag": tag},
	})
	build.Set(1)
	reg.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(),
		build,
	)
	return reg
}

// Handler serves the registry in the Prometheus text format.
func Handler(reg prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// LogDrops exposes how many log lines did not fit into the log buffer.
func LogDrops(reg prometheus.Registerer, dropped func() uint64) {
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "culvert_log_lines_dropped_total",
		Help: "Log lines dropped because the output was too slow.",
	}, func() float64 { return float64(dropped()) }))
}
