// Package admin serves the local HTTP ports of a component.
package admin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
)

// Levels is what /logging changes. *logging.Levels is one.
type Levels interface {
	Set(filter string) error
	Reset()
	String() string
}

// Config configures a Server.
type Config struct {
	Addr     string                                                                // host:port; used when Listener is nil
	Listener net.Listener                                                          // taken over by Run
	Listen   func(ctx context.Context, network, addr string) (net.Listener, error) // nil = net.Listen; e.g. with SO_REUSEPORT
	Name     string                                                                // of the component, for the index page
	Levels   Levels                                                                // nil = no /logging
	Quit     func()                                                                // POST /quitquitquit; nil = not served
	Log      *slog.Logger
}

// Server is an HTTP server on a local port.
type Server struct{}

// New returns the admin server: index, /config_dump, /logging, /debug/pprof/,
// /quitquitquit and what is added. Requests whose Host is not a loopback name are
// refused.
func New(cfg Config) *Server { panic("skeleton") }

// NewMetricsServer serves handler at /metrics and /stats/prometheus.
func NewMetricsServer(cfg Config, metrics http.Handler) *Server { panic("skeleton") }

// NewReadinessServer serves r at /healthz/ready.
func NewReadinessServer(cfg Config, r *Readiness) *Server { panic("skeleton") }

// Handle adds a page, with one line of description for the index.
func (s *Server) Handle(path, about string, h http.Handler) {}

// Dump adds a key to /config_dump; value is called at each request.
func (s *Server) Dump(name string, value func() any) {}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { panic("skeleton") }

// Readiness is a set of gates that must all be open.
type Readiness struct{}

// NewReadiness returns a readiness without gates: ready.
func NewReadiness() *Readiness { panic("skeleton") }

// Gate adds a closed gate. done opens it, block closes it again; both may be
// called any number of times.
func (r *Readiness) Gate(name string) (done, block func()) { panic("skeleton") }

// Pending returns the names of the closed gates, sorted.
func (r *Readiness) Pending() []string { panic("skeleton") }

// ServeHTTP answers 200 "ready" or 500 "not ready, pending: a, b".
func (r *Readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) { panic("skeleton") }
