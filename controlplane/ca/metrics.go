package ca

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

// counters are the service's metrics, under upstream's names.
type counters struct {
	requests, unauthenticated, badRequests, signErrors, issued prometheus.Counter
}

// newCounters makes the counters and registers them unless reg is nil.
func newCounters(reg prometheus.Registerer) *counters {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &counters{
		requests:        counter("citadel_server_csr_count", "Certificate requests received."),
		unauthenticated: counter("citadel_server_authentication_failure_count", "Requests refused because of who asked, or for whom."),
		badRequests:     counter("citadel_server_csr_parsing_err_count", "Requests whose CSR was malformed."),
		signErrors:      counter("citadel_server_csr_sign_err_count", "Requests that could not be signed."),
		issued:          counter("citadel_server_success_cert_issuance_count", "Certificates issued."),
	}
}

// ObserveAuthority registers when an authority's certificates expire: the root's,
// and the first one's on the way from a leaf to it. There is nothing to tell while
// the authority has none.
func ObserveAuthority(reg prometheus.Registerer, a *selfsigned.Authority) {
	reg.MustRegister(expiry{a})
}

// expiry is a collector. Istio's names, twice: as a time, and as time left.
type expiry struct{ authority *selfsigned.Authority }

var (
	rootExpiry  = prometheus.NewDesc("citadel_server_root_cert_expiry_timestamp", "When the root certificate expires, in seconds since 1970.", nil, nil)
	rootLeft    = prometheus.NewDesc("citadel_server_root_cert_expiry_seconds", "Seconds until the root certificate expires; negative when it has.", nil, nil)
	chainExpiry = prometheus.NewDesc("citadel_server_cert_chain_expiry_timestamp", "When the first certificate between leaves and the root expires, in seconds since 1970.", nil, nil)
	chainLeft   = prometheus.NewDesc("citadel_server_cert_chain_expiry_seconds", "Seconds until the first certificate between leaves and the root expires; negative when it has.", nil, nil)
)

// Describe implements prometheus.Collector.
func (e expiry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rootExpiry, rootLeft, chainExpiry, chainLeft} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e expiry) Collect(ch chan<- prometheus.Metric) {
	m := e.authority.Material()
	if m == nil {
		return
	}
	root, chain := m.Expiry()
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(rootExpiry, float64(root.Unix()))
	gauge(rootLeft, time.Until(root).Seconds())
	gauge(chainExpiry, float64(chain.Unix()))
	gauge(chainLeft, time.Until(chain).Seconds())
}
