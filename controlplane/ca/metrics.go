package ca

import "github.com/prometheus/client_golang/prometheus"

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
