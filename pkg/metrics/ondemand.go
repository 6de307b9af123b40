package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// OnDemandDNS counts the lookups that connections to workloads known only by a
// hostname have made: istio_on_demand_dns_total. It is safe for concurrent use; a
// nil one counts nothing.
type OnDemandDNS struct{ total *prometheus.CounterVec }

// NewOnDemandDNS registers the counter with reg.
func NewOnDemandDNS(reg prometheus.Registerer) *OnDemandDNS {
	m := &OnDemandDNS{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_on_demand_dns_total",
		Help: "The total number of requests that used on-demand DNS.",
	}, []string{"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname"})}
	reg.MustRegister(m.total)
	return m
}

// Lookup counts one lookup of host for a connection of source.
func (m *OnDemandDNS) Lookup(source *mesh.Workload, host string) {
	if m == nil {
		return
	}
	s := sideOf(source, source.Identity())
	values := []string{s.workload, s.canonical, s.revision, s.namespace, s.principal, s.canonical, s.revision, s.cluster, host}
	for i, v := range values {
		if v == "" {
			values[i] = unknown
		}
	}
	m.total.WithLabelValues(values...).Inc()
}
