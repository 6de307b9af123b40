package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	stdhttp "net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/config"
)

func http2Only() *stdhttp.Protocols {
	p := new(stdhttp.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// http2 returns a client that speaks HTTP/2 to the service, with prior knowledge.
func (w *world) http2() *stdhttp.Client {
	tr := &stdhttp.Transport{
		Protocols: http2Only(),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return w.connect(ctx, vip.String()+":80")
		},
		DisableCompression: true,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &stdhttp.Client{Transport: tr}
}

// origin2 starts a server of HTTP/2 and makes it the service's only endpoint.
func (w *world) origin2(h stdhttp.HandlerFunc) {
	s := &stdhttp.Server{Handler: h, Protocols: http2Only()}
	w.pod("cart-1", "10.244.0.9", serveHTTP(w.t, s))
}

func newRequest(t testing.TB, ctx context.Context, method, url string, body io.Reader) *stdhttp.Request {
	t.Helper()
	r, err := stdhttp.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	for _, protocol := range []config.Protocol{config.HTTP, config.Auto} {
		t.Run(protocol.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{protocol: protocol, detect: 10 * time.Second})
			w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
				b, _ := io.ReadAll(r.Body)
				rw.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %s te=%s", r.Proto, r.Method, r.Host, r.RequestURI, r.Header.Get("Te")))
				rw.Header().Set("Trailer", "Announced")
				rw.WriteHeader(stdhttp.StatusAccepted)
				fmt.Fprintf(rw, "%d bytes, trailer %s", len(b), r.Trailer.Get("X-Sum"))
				rw.Header().Set("Announced", "yes")
				rw.Header().Set(stdhttp.TrailerPrefix+"Grpc-Status", "0")
			})
			client := w.http2()
			for range 3 {
				r := newRequest(t, context.Background(), "POST", "http://cart.shop/a%2fb//c?", io.MultiReader(strings.NewReader(strings.Repeat("x", 300_000))))
				r.Header.Set("Te", "trailers")
				r.Trailer = stdhttp.Header{"X-Sum": {"42"}}
				resp, err := client.Do(r)
				body := readAll(t, resp, err)
				if resp.StatusCode != 202 || body != "300000 bytes, trailer 42" || resp.Proto != "HTTP/2.0" {
					t.Errorf("%s %d %q", resp.Proto, resp.StatusCode, body)
				}
				if got, want := resp.Header.Get("X-Seen"), "HTTP/2.0 POST cart.shop /a%2fb//c? te=trailers"; got != want {
					t.Errorf("the origin saw %q, want %q", got, want)
				}
				if resp.Trailer.Get("Announced") != "yes" || resp.Trailer.Get("Grpc-Status") != "0" {
					t.Errorf("trailer %v", resp.Trailer)
				}
			}
			l := w.log.last(t, 3)
			if l.Protocol != "HTTP/2" || l.Status != 202 || l.RequestBytes < 300_000 || l.ResponseBytes < 20 {
				t.Errorf("%+v", l)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.opened) != 1 {
				t.Errorf("connections to the endpoint: %v", w.opened)
			}
		})
	}
}

// Both directions of a request stream at once, and many requests do.
func TestHTTP2Streams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.WriteHeader(200)
		_ = stdhttp.NewResponseController(rw).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				_, _ = rw.Write([]byte(strings.ToUpper(string(buf[:n]))))
				_ = stdhttp.NewResponseController(rw).Flush()
			}
			if err != nil {
				return
			}
		}
	})
	client := w.http2()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			pr, pw := io.Pipe()
			resp, err := client.Do(newRequest(t, context.Background(), "POST", "http://cart/", pr))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			for j := range 10 {
				say := fmt.Sprintf("word %d of %d;", j, i)
				if _, err := pw.Write([]byte(say)); err != nil {
					t.Error(err)
				}
				got := make([]byte, len(say))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != strings.ToUpper(say) {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
			_ = pw.Close()
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
	wg.Wait()
}

// An endpoint may answer before it has read the request, as gRPC's do with errors.
func TestHTTP2EarlyAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.Header().Set("Content-Type", "application/grpc")
		rw.Header().Set("Grpc-Status", "5")
	})
	client := w.http2()
	for range 3 {
		pr, pw := io.Pipe()
		resp, err := client.Do(newRequest(t, context.Background(), "POST", "http://cart/a.B/C", pr))
		readAll(t, resp, err)
		if resp.Header.Get("Grpc-Status") != "5" {
			t.Errorf("%v", resp.Header)
		}
		_ = pw.Close()
	}
	if l := w.log.last(t, 3); l.Status != 200 || l.Flags != "" || l.Err != nil {
		t.Errorf("%+v", l)
	}
}

func TestHTTP2ClientLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	began, ended := make(chan struct{}), make(chan struct{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-began; cancel() }()
	if resp, err := w.http2().Do(newRequest(t, ctx, "GET", "http://cart/", nil)); err == nil {
		resp.Body.Close()
		t.Error("answered")
	}
	<-ended
	if l := w.log.last(t, 1); l.Flags != "DC" {
		t.Errorf("%+v", l)
	}
}

// A response that breaks off does not look complete.
func TestHTTP2EndpointBreaksOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		_, _ = rw.Write([]byte("half"))
		_ = stdhttp.NewResponseController(rw).Flush()
		panic(stdhttp.ErrAbortHandler)
	})
	resp, err := w.http2().Do(newRequest(t, context.Background(), "GET", "http://cart/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("complete: %q", b)
	}
	if l := w.log.last(t, 1); l.Flags != "UC" {
		t.Errorf("%+v", l)
	}
}

// What the waypoint answers itself, a gRPC client understands.
func TestGRPCAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{routes: &config.RouteTable{Hosts: []config.VirtualHost{{Domains: []string{"*"}, Routes: []config.Route{
		{Name: "slow", Path: config.PathMatch{Kind: config.PathExact, Value: "/a.B/Slow"},
			Forward: &config.Forward{Clusters: []config.WeightedCluster{{Name: "outbound|80||cart", Weight: 1}}, TotalWeight: 1, Timeout: 20 * time.Millisecond}},
		{Name: "nobody", Path: config.PathMatch{Kind: config.PathExact, Value: "/a.B/Nobody"},
			Forward: &config.Forward{Clusters: []config.WeightedCluster{{Name: "empty", Weight: 1}}, TotalWeight: 1}},
		{Name: "direct", Path: config.PathMatch{Kind: config.PathExact, Value: "/a.B/Direct"}, Direct: &config.Direct{Status: 403, Body: []byte("no\n50%")}},
	}}}}})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { <-r.Context().Done() })
	client := w.http2()
	for path, want := range map[string]string{"/a.B/Slow": "14 UT", "/a.B/Nobody": "14 UH", "/a.B/Other": "12 NR", "/a.B/Direct": "7 "} {
		r := newRequest(t, context.Background(), "POST", "http://cart"+path, strings.NewReader("\x00\x00\x00\x00\x00"))
		r.Header.Set("Content-Type", "application/grpc+proto")
		resp, err := client.Do(r)
		body := readAll(t, resp, err)
		if resp.StatusCode != 200 || body != "" || resp.Header.Get("Content-Type") != "application/grpc" {
			t.Errorf("%s: %d %v %q", path, resp.StatusCode, resp.Header, body)
		}
		var flags string
		await(t, "the line of "+path, func() bool {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			for _, l := range w.log.requests {
				if l.Path == path {
					flags = l.Flags
					return true
				}
			}
			return false
		})
		if got := resp.Header.Get("Grpc-Status") + " " + flags; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		if m := resp.Header.Get("Grpc-Message"); path == "/a.B/Direct" && m != "no%0A50%25" {
			t.Errorf("message %q", m)
		}
	}
}

// Targets and authorities are held to the same rules as in HTTP/1.1.
func TestHTTP2Targets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { fmt.Fprint(rw, r.RequestURI) })
	client := w.http2()
	for target, want := range map[string]string{
		"/public/../%61dmin": "200 /admin",
		`/a\b`:               "200 /a/b",
		"/x//y":              "200 /x//y",
		"//x/y":              "200 //x/y",
		"/%00":               "400 malformed request target",
	} {
		r := newRequest(t, context.Background(), "GET", "http://cart/", nil)
		r.URL.Opaque = target
		if strings.HasPrefix(target, "//") {
			r.URL.Opaque = "//cart" + target
		}
		resp, err := client.Do(r)
		body := readAll(t, resp, err)
		if got := fmt.Sprint(resp.StatusCode, " ", body); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}

// Draining lets requests end and tells the client to go elsewhere.
func TestHTTP2Drain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	release := make(chan struct{})
	began := make(chan struct{}, 1)
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		began <- struct{}{}
		<-release
		fmt.Fprint(rw, "done")
	})
	client := w.http2()
	got := make(chan string)
	go func() {
		resp, err := client.Do(newRequest(t, context.Background(), "GET", "http://cart/", nil))
		got <- readAll(t, resp, err)
	}()
	<-began
	w.proxy.Drain()
	idle := make(chan error)
	go func() { idle <- w.proxy.Idle(context.Background()) }()
	close(release)
	if body := <-got; body != "done" {
		t.Errorf("%q", body)
	}
	if err := <-idle; err != nil {
		t.Error(err)
	}
}

func TestHTTP2Informational(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.Header().Set("Link", "</a.css>")
		rw.WriteHeader(stdhttp.StatusEarlyHints)
		rw.Header().Del("Link")
		_, _ = io.Copy(rw, r.Body)
	})
	hints := make(chan string, 1)
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints <- fmt.Sprint(code, h["Link"])
		return nil
	}}
	resp, err := w.http2().Do(newRequest(t, httptrace.WithClientTrace(context.Background(), trace), "POST", "http://cart/", strings.NewReader("hello")))
	if body := readAll(t, resp, err); body != "hello" || resp.Header.Get("Link") != "" {
		t.Errorf("%q %v", body, resp.Header)
	}
	if hint := <-hints; hint != "103 [</a.css>]" {
		t.Error(hint)
	}
}

// Nothing is left of connections that ended in every way.
func TestHTTP2LeavesNothing(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin2(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		switch r.URL.Path {
		case "/wait":
			_ = stdhttp.NewResponseController(rw).Flush()
			<-r.Context().Done()
		case "/abort":
			panic(stdhttp.ErrAbortHandler)
		}
	})
	for _, path := range []string{"/", "/wait", "/abort"} {
		client := w.http2()
		ctx, cancel := context.WithCancel(context.Background())
		resp, err := client.Do(newRequest(t, ctx, "GET", "http://cart"+path, nil))
		if err != nil {
			t.Fatal(err)
		}
		if path != "/wait" {
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		cancel()
		resp.Body.Close()
	}
	w.log.last(t, 3)
}
