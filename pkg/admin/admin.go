// Package admin serves the HTTP ports of a component that are for people and
// tools rather than for traffic.
//
//	15000 admin      /  /config_dump  /logging  /debug/pprof/  /quitquitquit  …
//	15020 metrics    /metrics  /stats/prometheus
//	15021 readiness  /healthz/ready
//
// The admin port can change the program, so on a loopback address it answers only
// requests that name a loopback host: a web page in a browser on the same machine
// cannot reach it by DNS rebinding.
//
// Handle and Dump are called before Run; everything else is safe for concurrent use.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Levels is what /logging changes. *logging.Levels is one.
type Levels interface {
	Set(filter string) error
	Reset()
	String() string
}

// Config configures a Server.
type Config struct {
	Addr     string       // host:port; used when Listener is nil
	Listener net.Listener // taken over by Run
	// Listen opens Addr; nil = plain listen. With SO_REUSEPORT a successor can
	// start before its predecessor has ended.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)
	Name   string       // of the component, for the index page
	Levels Levels       // nil = no /logging
	Quit   func()       // for POST /quitquitquit; nil = not served
	Log    *slog.Logger // nil = none
}

// Server is an HTTP server on a local port.
type Server struct {
	cfg   Config
	mux   *http.ServeMux
	pages []page
	dumps []dump
	local bool // refuse foreign Host headers when bound to loopback
}

// page is a line of the index.
type page struct{ Path, About string }

// dump is a key of /config_dump.
type dump struct {
	name  string
	value func() any
}

func newServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == nil {
		cfg.Listen = new(net.ListenConfig).Listen
	}
	return &Server{cfg: cfg, mux: http.NewServeMux()}
}

// NewMetricsServer serves metrics at /metrics and /stats/prometheus.
func NewMetricsServer(cfg Config, metrics http.Handler) *Server {
	s := newServer(cfg)
	s.Handle("/metrics", "metrics in the Prometheus text format", metrics)
	s.Handle("/stats/prometheus", "the same", metrics)
	return s
}

// NewReadinessServer serves r at /healthz/ready.
func NewReadinessServer(cfg Config, r *Readiness) *Server {
	s := newServer(cfg)
	s.Handle("/healthz/ready", "200 when ready, else 500 and what is missing", r)
	return s
}

// Handle adds a page, with one line about it for the index. path is a pattern of
// http.ServeMux.
func (s *Server) Handle(path, about string, h http.Handler) {
	s.mux.Handle(path, h)
	s.pages = append(s.pages, page{path, about})
}

// Dump adds a key to /config_dump. value is called at each request and its result
// encoded as JSON.
func (s *Server) Dump(name string, value func() any) {
	s.dumps = append(s.dumps, dump{name, value})
}

// Run serves until ctx ends; requests under way get a second to finish. It fails
// when the address cannot be listened on.
func (s *Server) Run(ctx context.Context) error {
	l := s.cfg.Listener
	if l == nil {
		var err error
		if l, err = s.cfg.Listen(ctx, "tcp", s.cfg.Addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	server := &http.Server{
		Handler:           s.guard(l.Addr()),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	s.cfg.Log.Info("listening", "address", l.Addr().String())
	stop := context.AfterFunc(ctx, func() { shutdown(server) })
	defer stop()
	err := server.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// shutdown ends a server, gently for a second.
func shutdown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		_ = server.Close()
	}
}

// guard returns the handler for a server on addr.
func (s *Server) guard(addr net.Addr) http.Handler {
	tcp, ok := addr.(*net.TCPAddr)
	if !s.local || !ok || !tcp.IP.IsLoopback() {
		return s.mux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !loopbackHost(r.Host) {
			http.Error(w, "this port answers only to loopback hosts", http.StatusForbidden)
			return
		}
		s.mux.ServeHTTP(w, r)
	})
}

// loopbackHost reports whether a Host header names this machine's loopback.
func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "" || strings.EqualFold(strings.TrimSuffix(host, "."), "localhost")
}
