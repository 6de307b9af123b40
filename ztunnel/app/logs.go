package app

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/logging/otlp"
)

// buildOTLP builds what sends log lines to a collector, if there is one.
func (a *App) buildOTLP() (sink logging.Sink, err error) {
	if !a.cfg.OTLP.Enabled() {
		return nil, nil
	}
	if a.otlp, err = otlp.New(a.cfg.OTLP); err != nil {
		return nil, err
	}
	return a.otlp, nil
}

// sink is where lines go besides; nil for nowhere.
func (a *App) sink() logging.Sink {
	if a.otlp == nil {
		return nil
	}
	return a.otlp
}

// countRecords exposes what becomes of the lines that go to a collector.
func (a *App) countRecords() {
	if a.otlp == nil {
		return
	}
	counter := func(name, help string, value func(otlp.Counts) uint64) {
		a.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "culvert_log_otlp_" + name, Help: help},
			func() float64 { return float64(value(a.otlp.Counts())) }))
	}
	counter("records_sent_total", "Log records that the OTLP collector took.", func(c otlp.Counts) uint64 { return c.Sent })
	counter("records_dropped_total", "Log records dropped because the OTLP collector was too slow or away.", func(c otlp.Counts) uint64 { return c.Dropped })
	counter("requests_failed_total", "Requests that the OTLP collector did not take.", func(c otlp.Counts) uint64 { return c.FailedRequests })
}

// sendLogs sends log records until the function that it returns is called, and
// then what is left.
func (a *App) sendLogs() (stop func()) {
	if a.otlp == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.otlp.Run(ctx) // what could not be sent is counted
	}()
	return func() {
		cancel()
		<-done
	}
}
