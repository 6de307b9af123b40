package app

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/cni-plugin/install"
	"github.com/culvert-mesh/culvert/pkg/handover"
)

// Metrics are the agent's own.
type Metrics struct {
	events     *prometheus.CounterVec
	ztunnels   prometheus.Gauge
	inMesh     prometheus.Gauge
	cmdAdds    *prometheus.CounterVec
	joinErrors prometheus.Counter
	restored   prometheus.Counter
	installs   *prometheus.CounterVec
	installed  prometheus.Gauge
	proven     prometheus.Gauge
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
			Name: "istio_cni_plugin_requests_total", Help: "Pods announced by the CNI plugin, by status of the answer."}, []string{"response_code"}),
		joinErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_errors_total", Help: "Attempts to bring a pod into or out of the mesh that failed."}),
		restored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodeagent_rules_restored_total", Help: "Times that something else damaged a pod's rules and they were restored."}),
		installs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_cni_installs_total", Help: "Times that the CNI plugin was put on the node, by result."}, []string{"result"}),
		installed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "istio_cni_install_ready", Help: "1 when the CNI plugin is in the node's configuration."}),
		proven: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nodeagent_node_proven", Help: "1 when the node's last proof found nothing wrong, -1 before the first, 0 otherwise."}),
	}
	m.proven.Set(-1)
	reg.MustRegister(m.events, m.ztunnels, m.inMesh, m.cmdAdds, m.joinErrors, m.restored, m.installs, m.installed, m.proven)
	return m
}

// heldSockets counts what a store holds.
func heldSockets(s *handover.Store) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nodeagent_held_sockets", Help: "Listening sockets of pods held for ztunnel's successor.",
	}, func() float64 { _, n := s.Held(); return float64(n) })
}

// tellInstalled counts what the installer did. Its results have upstream's names.
func (m *Metrics) tellInstalled(changes int, err error) {
	switch {
	case errors.Is(err, install.ErrProgram):
		m.installs.WithLabelValues("COPY_BINARIES_FAILURE").Inc()
	case err != nil:
		m.installs.WithLabelValues("CREATE_CNI_CONFIG_FAILURE").Inc()
	case changes > 0:
		m.installs.WithLabelValues("SUCCESS").Inc()
	}
	m.installed.Set(map[bool]float64{true: 1}[err == nil])
}
