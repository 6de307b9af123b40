package admin

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/logging"
)

// start runs s on a loopback port until the test ends and returns its URL.
func start(t *testing.T, build func(Config) *Server, cfg Config) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener = l
	s := build(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s.Dump("workloads", func() any { return []string{"a", "b"} })
	s.Dump("stagedServices", func() any { return map[string]int{} })
	if s.local {
		s.Handle("/extra", "a page of its own", http.NotFoundHandler())
	}
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, "http://" + l.Addr().String()
}

func do(t *testing.T, method, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestPages(t *testing.T) {
	t.Parallel()
	_, url := start(t, New, Config{Name: "ztunnel <1>"})
	status, body := do(t, "GET", url+"/", "")
	if status != 200 || !strings.Contains(body, `href="/extra"`) || !strings.Contains(body, "ztunnel &lt;1&gt;") {
		t.Errorf("index: %d %s", status, body)
	}
	status, body = do(t, "GET", url+"/config_dump", "")
	var dump struct {
		Workloads      []string
		StagedServices map[string]int
	}
	if err := json.Unmarshal([]byte(body), &dump); err != nil || status != 200 || len(dump.Workloads) != 2 || dump.StagedServices == nil {
		t.Errorf("config dump: %d %v %s", status, err, body)
	}
	for path, want := range map[string]int{
		"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/heap/profiling": 200, "/debug/pprof/cmdline": 200,
		"/debug/pprof/profile?seconds=1": 200, "/nothing": 404,
		"/logging": 404, "/quitquitquit": 404, // not configured
	} {
		if status, _ := do(t, "GET", url+path, ""); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
}

func TestUnencodableDump(t *testing.T) {
	t.Parallel()
	s, url := start(t, func(c Config) *Server {
		s := New(c)
		s.Dump("bad", func() any { return func() {} })
		return s
	}, Config{})
	if status, body := do(t, "GET", url+"/config_dump", ""); status != 500 || !strings.Contains(body, "encode config dump") {
		t.Errorf("%d %s (%d dumps)", status, body, len(s.dumps))
	}
}

func TestLogging(t *testing.T) {
	t.Parallel()
	levels, err := logging.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	_, url := start(t, New, Config{Levels: levels})
	for _, step := range []struct {
		method, query string
		status        int
		body          string
	}{
		{"POST", "", 200, "current log level is info\n"},
		{"POST", "?level=warn,access=debug", 200, "current log level is warn,access=debug\n"},
		{"GET", "", 200, "current log level is warn,access=debug\n"},
		{"GET", "?level=error", 405, ""},
		{"POST", "?level=loud", 400, "unknown level"},
		{"POST", "?reset", 200, "current log level is info\n"},
		{"POST", "?reset&level=xds=trace", 200, "current log level is info,xds=trace\n"},
	} {
		status, body := do(t, step.method, url+"/logging"+step.query, "")
		if status != step.status || !strings.Contains(body, step.body) {
			t.Errorf("%s %s: %d %q", step.method, step.query, status, body)
		}
	}
}

func TestQuitOnlyByPOST(t *testing.T) {
	t.Parallel()
	quit := make(chan struct{}, 1)
	_, url := start(t, New, Config{Quit: func() { quit <- struct{}{} }})
	if status, _ := do(t, "GET", url+"/quitquitquit", ""); status != 405 || len(quit) != 0 {
		t.Errorf("GET: %d", status)
	}
	if status, _ := do(t, "POST", url+"/quitquitquit", ""); status != 200 {
		t.Errorf("POST: %d", status)
	}
	<-quit
}

func TestForeignHostsAreRefused(t *testing.T) {
	t.Parallel()
	_, url := start(t, New, Config{})
	_, metrics := start(t, func(c Config) *Server {
		return NewMetricsServer(c, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "m 1\n") }))
	}, Config{})
	for host, want := range map[string]int{
		"localhost": 200, "localhost:15000": 200, "LOCALHOST.": 200, "127.0.0.1:15000": 200, "127.9.9.9": 200, "[::1]:15000": 200, "[::ffff:127.0.0.1]": 200,
		"evil.example": 403, "evil.example:15000": 403, "10.0.0.1": 403, "localhost.evil.example": 403, "[fd00::1]:1": 403,
	} {
		if status, _ := do(t, "GET", url+"/config_dump", host); status != want {
			t.Errorf("%s: %d, want %d", host, status, want)
		}
		if status, body := do(t, "GET", metrics+"/stats/prometheus", host); status != 200 || body != "m 1\n" {
			t.Errorf("metrics for %s: %d", host, status)
		}
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	r := NewReadiness()
	_, url := start(t, func(c Config) *Server { return NewReadinessServer(c, r) }, Config{})
	check := func(status int, body string) {
		t.Helper()
		if s, b := do(t, "GET", url+"/healthz/ready", "10.0.0.1:15021"); s != status || b != body {
			t.Errorf("%d %q, want %d %q", s, b, status, body)
		}
	}
	check(200, "ready\n")
	stateDone, _ := r.Gate("state manager")
	proxyDone, proxyBlock := r.Gate("workload proxy manager")
	check(500, "not ready, pending: state manager, workload proxy manager\n")
	proxyDone()
	proxyDone()
	check(500, "not ready, pending: state manager\n")
	stateDone()
	check(200, "ready\n")
	proxyBlock()
	check(500, "not ready, pending: workload proxy manager\n")
	if status, _ := do(t, "POST", url+"/healthz/ready", ""); status != 405 {
		t.Errorf("POST: %d", status)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			done, block := r.Gate("same name")
			block()
			r.Pending()
			done()
		})
	}
	wg.Wait()
	proxyDone()
	check(200, "ready\n")
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := New(Config{Addr: l.Addr().String()}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("occupied port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	s := New(Config{Addr: "x", Listen: func(context.Context, string, string) (net.Listener, error) { return own, nil }})
	if err := s.Run(ctx); err != nil {
		t.Errorf("ended before it began: %v", err)
	}
}
