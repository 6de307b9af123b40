package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/handover"
)

// Metrics are the agent's own.
type Metrics struct {
	events     *prometheus.CounterVec
	ztunnels   prometheus.Gauge
	inMesh     prometheus.Gauge
	cmdAdds    *prometheus.CounterVec
	joinErrors prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_events_total", Help: "Changes of pods seen by the node agent."}, []string{"type"}),
		ztunnels: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ztunnel_connected", Help: "Number of connections to ztunnel."}),
		inMesh: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nodeagent_pods_enrolled", Help: "Pods of this node that a ztunnel has taken."}),
		cmdAdds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_cmdadd_requests_total", Help: "Pods announced by the runtime, by status of the answer."}, []string{"code"}),
		joinErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_errors_total", Help: "Attempts to bring a pod into or out of the mesh that failed."}),
	}
	reg.MustRegister(m.events, m.ztunnels, m.inMesh, m.cmdAdds, m.joinErrors)
	return m
}

// heldSockets counts what a store holds.
func heldSockets(s *handover.Store) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nodeagent_held_sockets", Help: "Listening sockets of pods held for ztunnel's successor.",
	}, func() float64 { _, n := s.Held(); return float64(n) })
}
