// Package echo is the program behind the built-in image culvert/echo: it tells
// its caller who called and what arrived, so that a person sees what a mesh did
// to a request on its way.
//
//	GET  /anything        who I am, who you are, what I saw
//	GET  /?status=503     answers with that status
//	GET  /?delay=200ms    answers later
//	GET  /?size=1000000   answers with so many bytes instead
//	POST /                the body comes back
//	TCP  --tcp ports      what is sent comes back, with half-close
//
// A Server is configured once and run once; everything it serves is concurrent.
package echo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Headers that every HTTP answer carries, for clients that count.
const (
	HeaderPod     = "X-Echo-Pod"
	HeaderService = "X-Echo-Service"
	HeaderVersion = "X-Echo-Version"
	HeaderSource  = "X-Echo-Source"
)

// Config is what an echo server serves and says of itself.
type Config struct {
	HTTP    []int // ports; default 8080 when there is no port at all
	TCP     []int
	Pod     string // $HOSTNAME
	Service string // $SERVICE
	Version string // $VERSION
}

// ParseConfig reads the container's args and environment.
func ParseConfig(args []string, getenv func(string) string) (Config, error) {
	cfg := Config{Pod: getenv("HOSTNAME"), Service: getenv("SERVICE"), Version: getenv("VERSION")}
	fs := flag.NewFlagSet("culvert/echo", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Func("http", "comma-separated ports that speak HTTP", ports(&cfg.HTTP))
	fs.Func("tcp", "comma-separated ports that send back what they receive", ports(&cfg.TCP))
	fs.StringVar(&cfg.Service, "service", cfg.Service, "name to answer with")
	fs.StringVar(&cfg.Version, "version", cfg.Version, "version to answer with")
	if err := fs.Parse(args); err != nil {
		return Config{}, fmt.Errorf("culvert/echo: %w", err)
	}
	if fs.NArg() > 0 {
		return Config{}, fmt.Errorf("culvert/echo: unexpected argument %q", fs.Arg(0))
	}
	if len(cfg.HTTP)+len(cfg.TCP) == 0 {
		cfg.HTTP = []int{8080}
	}
	cfg.Version = cmp.Or(cfg.Version, "v1")
	return cfg, nil
}

func ports(into *[]int) func(string) error {
	return func(list string) error {
		for _, s := range strings.Split(list, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
			if err != nil || n == 0 {
				return fmt.Errorf("%q is no port", s)
			}
			*into = append(*into, int(n))
		}
		return nil
	}
}

// Run serves every port until ctx ends. It listens on all addresses.
func Run(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	serve := func(port int, run func(context.Context, net.Listener) error) error {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("culvert/echo: %w", err)
		}
		wg.Go(func() {
			if err := run(ctx, l); err != nil {
				cancel(fmt.Errorf("culvert/echo: port %d: %w", port, err))
			}
		})
		return nil
	}
	var err error
	for _, p := range cfg.HTTP {
		err = cmp.Or(err, serve(p, cfg.serveHTTP))
	}
	for _, p := range cfg.TCP {
		err = cmp.Or(err, serve(p, serveTCP))
	}
	if err != nil {
		cancel(err)
	}
	<-ctx.Done()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// drainTime is how long requests that run may go on after the end was asked for.
const drainTime = 5 * time.Second

func (c Config) serveHTTP(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: c.Handler(), ReadHeaderTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if srv.Shutdown(graceful) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Answer is the body of an HTTP answer: as JSON for clients that accept it, as
// lines for all others.
type Answer struct {
	Pod     string      `json:"pod"`
	Service string      `json:"service,omitempty"`
	Version string      `json:"version"`
	Source  string      `json:"source"` // the caller's address as the server saw it
	Local   string      `json:"local"`
	Method  string      `json:"method"`
	Host    string      `json:"host"`
	Path    string      `json:"path"`
	Header  http.Header `json:"header"`
}

func (a Answer) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hello from %s", a.Pod)
	if a.Service != "" {
		fmt.Fprintf(&b, " (%s %s)", a.Service, a.Version)
	}
	fmt.Fprintf(&b, "\nsource: %s\nlocal: %s\nrequest: %s http://%s%s\n", a.Source, a.Local, a.Method, a.Host, a.Path)
	names := make([]string, 0, len(a.Header))
	for name := range a.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "header: %s: %s\n", name, strings.Join(a.Header[name], ", "))
	}
	return b.String()
}

// Handler returns what answers HTTP requests.
func (c Config) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, size, err := c.prepare(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		h := w.Header()
		h.Set(HeaderPod, c.Pod)
		h.Set(HeaderService, c.Service)
		h.Set(HeaderVersion, c.Version)
		h.Set(HeaderSource, r.RemoteAddr)
		switch {
		case size > 0:
			h.Set("Content-Length", strconv.FormatInt(size, 10))
			w.WriteHeader(status)
			_, _ = io.CopyN(w, filler{}, size)
		case r.Method == http.MethodPost || r.Method == http.MethodPut:
			w.WriteHeader(status)
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, r.Body)
		default:
			c.describe(w, r, status)
		}
	})
}

// prepare does what the query asks for before the answer.
func (c Config) prepare(r *http.Request) (status int, size int64, err error) {
	q := r.URL.Query()
	status = http.StatusOK
	if s := q.Get("status"); s != "" {
		if status, err = strconv.Atoi(s); err != nil || status < 200 || status > 599 {
			return 0, 0, fmt.Errorf("status=%s: want a number from 200 to 599", s)
		}
	}
	if s := q.Get("size"); s != "" {
		if size, err = strconv.ParseInt(s, 10, 64); err != nil || size < 0 {
			return 0, 0, fmt.Errorf("size=%s: want a number of bytes", s)
		}
	}
	if s := q.Get("delay"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, 0, fmt.Errorf("delay=%s: want a duration such as 200ms", s)
		}
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	return status, size, nil
}

func (c Config) describe(w http.ResponseWriter, r *http.Request, status int) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	a := Answer{Pod: c.Pod, Service: c.Service, Version: c.Version, Source: r.RemoteAddr, Method: r.Method,
		Host: r.Host, Path: r.URL.RequestURI(), Header: r.Header}
	if local != nil {
		a.Local = local.String()
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(a)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, a.text())
}

// filler yields the letter x for ever.
type filler struct{}

func (filler) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// flushing sends each write at once, so that a body comes back while it arrives.
type flushing struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.c.Flush()
}

// serveTCP sends back what it receives on each connection, until ctx ends.
func serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() { echoConn(ctx, c.(*net.TCPConn)) })
	}
}

func echoConn(ctx context.Context, c *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err == nil {
		_ = c.CloseWrite()
	}
}
