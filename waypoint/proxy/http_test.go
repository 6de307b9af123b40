package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	stdhttp "net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/filter/rbac"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/match"
)

func TestRequest(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.Header().Set("X-Seen", r.Host+" "+r.Header.Get("X-Forwarded-Proto")+" "+r.Header.Get("Traceparent"))
		rw.Header().Set("X-Id", r.Header.Get("X-Request-Id"))
		fmt.Fprintf(rw, "%s %s", r.Method, r.URL)
	})
	req, _ := stdhttp.NewRequest("GET", "http://cart/a?b=c", nil)
	req.Header.Set("Traceparent", "00-1-2-00")
	resp, err := w.http().Do(req)
	if body := readAll(t, resp, err); body != "GET /a?b=c" || resp.StatusCode != 200 {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if got := resp.Header.Get("X-Seen"); got != "cart http 00-1-2-00" {
		t.Errorf("origin saw %q", got)
	}
	if len(resp.Header.Get("X-Id")) != 36 {
		t.Errorf("request id %q", resp.Header.Get("X-Id"))
	}
	l := w.log.last(t, 1)
	if l.Status != 200 || l.Source.Identity != frontend || l.Destination.Workload != "cart-1" || l.Path != "/a?b=c" || l.Err != nil {
		t.Errorf("logged %+v", l)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = rw.Write(b)
	})
	c := w.http()
	for i := range 20 {
		body := strings.Repeat("x", i*1000)
		resp, err := c.Post("http://cart/", "text/plain", strings.NewReader(body))
		if got := readAll(t, resp, err); got != body {
			t.Fatalf("request %d: status %d, %d bytes of %d: %.60q; logged %v", i, resp.StatusCode, len(got), len(body), got, w.log.last(t, i+1).Err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.opened) != 1 {
		t.Errorf("%d connections to the endpoint", len(w.opened))
	}
}

// endless yields n bytes that depend on their position.
type endless struct{ at, n int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.at == e.n {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), e.n-e.at)]
	for i := range p {
		p[i] = byte((e.at + int64(i)) * 31 >> 3)
	}
	e.at += int64(len(p))
	return len(p), nil
}

func TestLargeBodiesBothWays(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		_ = stdhttp.NewResponseController(rw).EnableFullDuplex()
		h := sha256.New()
		rw.Header().Set("Trailer", "X-Sum")
		rw.WriteHeader(200)
		_, _ = io.Copy(rw, io.TeeReader(r.Body, h))
		rw.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	})
	const size = 100 << 20
	for _, length := range []int64{-1, size} {
		up, down := sha256.New(), sha256.New()
		req, _ := stdhttp.NewRequest("POST", "http://cart/", io.TeeReader(&endless{n: size}, up))
		req.ContentLength = length
		resp, err := w.http().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(down, resp.Body)
		resp.Body.Close()
		if err != nil || n != size {
			t.Fatalf("%d bytes back, %v", n, err)
		}
		want := fmt.Sprintf("%x", up.Sum(nil))
		if got := fmt.Sprintf("%x", down.Sum(nil)); got != want || resp.Trailer.Get("X-Sum") != want {
			t.Errorf("sums differ: sent %s, back %s, origin saw %s", want, got, resp.Trailer.Get("X-Sum"))
		}
	}
}

func TestRequestTrailers(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, r.Trailer.Get("X-T"))
	})
	req, _ := stdhttp.NewRequest("POST", "http://cart/", io.MultiReader(strings.NewReader("abc")))
	req.Trailer = stdhttp.Header{"X-T": {"u"}}
	resp, err := w.http().Do(req)
	if got := readAll(t, resp, err); got != "u" {
		t.Errorf("trailer %q", got)
	}
}

func TestExpectContinue(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(413)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	})
	for path, want := range map[string]string{"/": "200 100000", "/refuse": "413 "} {
		req, _ := stdhttp.NewRequest("POST", "http://cart"+path, strings.NewReader(strings.Repeat("x", 100000)))
		req.Header.Set("Expect", "100-continue")
		resp, err := w.http().Do(req)
		body := readAll(t, resp, err)
		if got := fmt.Sprint(resp.StatusCode, " ", body); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestUpgrade(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		c, buf, err := stdhttp.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello ", r.Header.Get("Upgrade"))
		_, _ = io.Copy(c, buf)
	})
	c := w.dialVIP(t)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
	br := bufio.NewReader(c)
	resp, err := stdhttp.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v, %v", resp, err)
	}
	fmt.Fprint(c, "late")
	_ = c.CloseWrite()
	got, err := io.ReadAll(br)
	if err != nil || string(got) != "hello early late" {
		t.Errorf("%q, %v", got, err)
	}
}

func route(r config.Route) *config.RouteTable {
	return &config.RouteTable{Name: "routes", Hosts: []config.VirtualHost{{Domains: []string{"*"}, Routes: []config.Route{r}}}}
}

func toCart() *config.Forward {
	return &config.Forward{Clusters: []config.WeightedCluster{{Name: "outbound|80||cart", Weight: 1}}, TotalWeight: 1, NoCluster: 500}
}

func TestTimeout(t *testing.T) {
	leakCheck(t)
	f := toCart()
	f.Timeout = 200 * time.Millisecond
	w := newWorld(t, options{routes: route(config.Route{Name: "slow", Path: config.PathMatch{Value: "/"}, Forward: f})})
	release := make(chan struct{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		if r.URL.Path == "/half" {
			_, _ = io.WriteString(rw, "half")
			_ = stdhttp.NewResponseController(rw).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	resp, err := w.http().Get("http://cart/")
	if body := readAll(t, resp, err); resp.StatusCode != 504 || body != "upstream request timeout" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if l := w.log.last(t, 1); l.Flags != "UT" || l.Route != "slow" {
		t.Errorf("logged %+v", l)
	}
	resp, err = w.http().Get("http://cart/half")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("half an answer passed for a whole one: %q", b)
	}
}

func TestErrors(t *testing.T) {
	leakCheck(t)
	lookup := func(path, cluster string) config.Route {
		return config.Route{Name: path, Path: config.PathMatch{Kind: config.PathExact, Value: path},
			Forward: &config.Forward{Clusters: []config.WeightedCluster{{Name: cluster, Weight: 1}}, TotalWeight: 1, NoCluster: 500}}
	}
	table := &config.RouteTable{Hosts: []config.VirtualHost{{Domains: []string{"*"}, Routes: []config.Route{
		lookup("/empty", "empty"), lookup("/none", "none"), lookup("/dead", "outbound|80||cart"),
		{Path: config.PathMatch{Kind: config.PathExact, Value: "/direct"}, Direct: &config.Direct{Status: 418, Body: []byte("tea")}},
		{Name: "broken", Path: config.PathMatch{Kind: config.PathExact, Value: "/broken"}, Direct: &config.Direct{Status: 500, Body: []byte("no backend")}},
		{Path: config.PathMatch{Kind: config.PathExact, Value: "/away"}, Redirect: &config.Redirect{Status: 302, Host: "b", PrefixRewrite: "/c"}},
	}}}}
	w := newWorld(t, options{routes: table})
	w.pod("dead", "10.244.0.8", "127.0.0.1:1")
	for i, c := range []struct {
		path     string
		status   int
		body     string
		flags    string
		location string
	}{
		{"/nothing", 404, string(reason.NoRoute), "NR", ""},
		{"/empty", 503, "no healthy upstream", "UH", ""},
		{"/none", 500, string(reason.BackendUnresolved), "NC", ""},
		{"/dead", 503, "upstream connect error", "UF", ""},
		{"/direct", 418, "tea", "", ""},
		{"/broken", 500, "no backend", "", ""},
		{"/away?q", 302, "", "", "http://b/c?q"},
	} {
		resp, err := w.http().Get("http://cart" + c.path)
		body := readAll(t, resp, err)
		if resp.StatusCode != c.status || body != c.body || resp.Header.Get("Location") != c.location {
			t.Errorf("%s: %d %q %v", c.path, resp.StatusCode, body, resp.Header)
		}
		if l := w.log.last(t, i+1); l.Flags != c.flags {
			t.Errorf("%s: flags %q, %v", c.path, l.Flags, l.Err)
		} else if (l.Err != nil) != (c.status >= 500 || c.flags != "") {
			t.Errorf("%s: status %d logged with error %v", c.path, c.status, l.Err)
		}
	}
}

func TestAnotherEndpointWhenOneIsDead(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {})
	w.pod("dead", "10.244.0.8", "127.0.0.1:1")
	for range 10 {
		resp, err := w.http().Post("http://cart/", "", strings.NewReader("x"))
		readAll(t, resp, err)
		if resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
}

func TestStaleConnection(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	var conns atomic.Int32
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	// Every connection answers once, keeps alive, and hangs up at its second request.
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				if _, err := stdhttp.ReadRequest(br); err != nil {
					return
				}
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				_, _ = br.Peek(1)
			}()
		}
	}()
	w.pod("cart-1", "10.244.0.9", ln.Addr().String())
	for i := range 5 {
		resp, err := w.http().Get("http://cart/")
		if body := readAll(t, resp, err); resp.StatusCode != 200 || body != "ok" {
			t.Fatalf("request %d: %d %q", i, resp.StatusCode, body)
		}
	}
}

func TestDenied(t *testing.T) {
	leakCheck(t)
	allow := rbac.New(rbac.Config{FilterName: "rbac", Rules: &rbac.Rules{Action: rbac.Allow, Policies: []rbac.Policy{{
		Name:        "shop/get",
		Permissions: []rbac.Rule{rbac.Header{Header: match.Header{Name: ":method", Value: match.String{Kind: match.Exact, Value: "GET"}}}},
		Principals:  []rbac.Rule{rbac.Authenticated{Name: match.String{Kind: match.Exact, Value: frontend.String()}}},
	}}}})
	w := newWorld(t, options{filters: filter.Chain{allow}})
	var seen atomic.Int32
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { seen.Add(1) })
	c := w.http()
	resp, err := c.Get("http://cart/")
	readAll(t, resp, err)
	if resp.StatusCode != 200 {
		t.Errorf("GET: %d", resp.StatusCode)
	}
	resp, err = c.Post("http://cart/", "", strings.NewReader("x"))
	if body := readAll(t, resp, err); resp.StatusCode != 403 || body != "RBAC: access denied" {
		t.Errorf("POST: %d %q", resp.StatusCode, body)
	}
	if l := w.log.last(t, 2); reason.Of(l.Err) != reason.RBACDenied || seen.Load() != 1 {
		t.Errorf("logged %v, origin saw %d", l.Err, seen.Load())
	}
}

func TestRefusedRequests(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{http: h1.Options{Buffers: new(h1.Buffers), HeadTimeout: 100 * time.Millisecond}})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	for in, want := range map[string]int{
		"GET / HTTP/1.1\r\n\r\n": 400,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n":                                 400,
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n":                                           431,
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n":                                                                             405,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 20000) + "zz\r\n\r\n": 400,
		"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ":                                                                                 408,
	} {
		c := w.dialVIP(t)
		go func() { _, _ = io.WriteString(c, in) }()
		resp, err := stdhttp.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%.40q: %v", in, err)
			continue
		}
		if resp.StatusCode != want || !resp.Close {
			t.Errorf("%.40q: %d, close %v", in, resp.StatusCode, resp.Close)
		}
		c.Close()
	}
}

func TestPipelined(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s%s", r.URL.Path, b)
	})
	c := w.dialVIP(t)
	var in bytes.Buffer
	for i := range 10 {
		fmt.Fprintf(&in, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n:%d", i, i)
	}
	_, _ = c.Write(in.Bytes())
	br := bufio.NewReader(c)
	for i := range 10 {
		resp, err := stdhttp.ReadResponse(br, nil)
		if got := readAll(t, resp, err); got != fmt.Sprintf("/%d:%d", i, i) {
			t.Errorf("answer %d is %q", i, got)
		}
	}
}

func TestClientLeaves(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	arrived, left := make(chan struct{}), make(chan struct{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		close(arrived)
		<-r.Context().Done()
		close(left)
	})
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := stdhttp.NewRequestWithContext(ctx, "GET", "http://cart/", nil)
	done := make(chan error, 1)
	go func() {
		resp, err := w.http().Do(req)
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-left:
	case <-time.After(2 * time.Minute):
		t.Fatal("the endpoint works on for a client that left")
	}
	if l := w.log.last(t, 1); l.Flags != "DC" {
		t.Errorf("flags %q", l.Flags)
	}
}

// TestSlowConnect: a body that has arrived stays as it is in the client's buffer until
// it is sent, however long there is no connection to send it on.
func TestSlowConnect(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{slow: 150 * time.Millisecond}) // the client is watched sooner
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { _, _ = io.Copy(rw, r.Body) })
	c := w.dialVIP(t)
	const requests = 3
	for i := range requests {
		fmt.Fprintf(c, "POST /%d HTTP/1.1\r\nHost: cart\r\nContent-Length: 6\r\n\r\nbody %d", i, i)
	}
	br := bufio.NewReader(c)
	for i := range requests {
		resp, err := stdhttp.ReadResponse(br, nil)
		if got, want := readAll(t, resp, err), fmt.Sprint("body ", i); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestEarlyAnswer(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.Header().Set("Connection", "close")
		rw.WriteHeader(401)
		_, _ = io.WriteString(rw, "no")
	})
	c := w.dialVIP(t)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n%s", strings.Repeat("x", 50000))
	resp, err := stdhttp.ReadResponse(bufio.NewReader(c), nil)
	if body := readAll(t, resp, err); resp.StatusCode != 401 || body != "no" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

func TestStreamsAsItComes(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	next := make(chan struct{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		for i := range 3 {
			fmt.Fprintf(rw, "event %d\n", i)
			_ = stdhttp.NewResponseController(rw).Flush()
			<-next
		}
	})
	resp, err := w.http().Get("http://cart/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		if line, err := br.ReadString('\n'); line != fmt.Sprintf("event %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		next <- struct{}{}
	}
}

func TestDrain(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		arrived <- struct{}{}
		<-release
		fmt.Fprint(rw, "done")
	})
	type result struct {
		resp *stdhttp.Response
		err  error
	}
	got := make(chan result, 1)
	go func() {
		resp, err := w.http().Get("http://cart/")
		got <- result{resp, err}
	}()
	<-arrived
	w.proxy.Drain()
	w.stop()
	close(release)
	r := <-got
	if body := readAll(t, r.resp, r.err); body != "done" || !r.resp.Close {
		t.Errorf("%q, close %v", body, r.resp.Close)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := w.proxy.Idle(ctx); err != nil {
		t.Error(err)
	}
	if err := w.server.Drain(ctx); err != nil {
		t.Error(err)
	}
}

func TestHeaderChangesAndRewrite(t *testing.T) {
	leakCheck(t)
	f := toCart()
	f.PrefixRewrite, f.HostRewrite = "/new", "inner"
	f.Clusters[0].RequestMods = &config.HeaderMods{Set: []config.HeaderMod{{Kind: config.ModOverwrite, Name: "x-cluster", Value: "c"}}}
	w := newWorld(t, options{routes: route(config.Route{
		Path:         config.PathMatch{Kind: config.PathSeparatedPrefix, Value: "/old"},
		RequestMods:  []config.HeaderMods{{Remove: []string{"x-gone"}, Set: []config.HeaderMod{{Name: "x-more", Value: "2"}}}},
		ResponseMods: []config.HeaderMods{{Set: []config.HeaderMod{{Kind: config.ModOverwrite, Name: "server", Value: "hidden"}}}},
		Forward:      f,
	})})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		rw.Header().Set("Server", "origin")
		fmt.Fprintf(rw, "%s %s c=%s more=%s gone=%q", r.Host, r.URL, r.Header.Get("X-Cluster"), r.Header.Get("X-More"), r.Header.Get("X-Gone"))
	})
	req, _ := stdhttp.NewRequest("GET", "http://cart/old/x?y", nil)
	req.Header.Set("X-Gone", "z")
	req.Header.Set("X-More", "1")
	resp, err := w.http().Do(req)
	if got, want := readAll(t, resp, err), `inner /new/x?y c=c more=1,2 gone=""`; got != want || resp.Header.Get("Server") != "hidden" {
		t.Errorf("%q %v", got, resp.Header)
	}
}

func TestDrainEndsIdleConnections(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {})
	c := w.dialVIP(t)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := stdhttp.ReadResponse(br, nil)
	readAll(t, resp, err)
	if resp.Close {
		t.Error("closed before the drain")
	}
	w.proxy.Drain()
	ended := make(chan error, 1)
	go func() {
		_, err := br.ReadByte()
		c.Close()
		ended <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := w.proxy.Idle(ctx); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("the client sees %v", err)
	}
}

func TestSlowReaderHoldsNobodyElse(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		if r.URL.Path == "/big" {
			_, _ = io.Copy(rw, &endless{n: 64 << 20})
			return
		}
		fmt.Fprint(rw, "quick")
	})
	slow := w.dialVIP(t)
	fmt.Fprint(slow, "GET /big HTTP/1.1\r\nHost: a\r\n\r\n") // and never reads
	for range 50 {
		resp, err := w.http().Get("http://cart/")
		if got := readAll(t, resp, err); got != "quick" {
			t.Fatal(got)
		}
	}
}

// TestHostEndpoint: an endpoint that is a host outside is looked up at every
// connection, and its addresses are tried in turn.
func TestHostEndpoint(t *testing.T) {
	leakCheck(t)
	var asked atomic.Int32
	var at netip.AddrPort
	w := newWorld(t, options{lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != "api.example.com" {
			return nil, errors.New("no such host")
		}
		asked.Add(1)
		return []netip.Addr{netip.MustParseAddr("127.0.0.2"), at.Addr()}, nil
	}})
	at = netip.MustParseAddrPort(serveHTTP(t, &stdhttp.Server{Handler: stdhttp.HandlerFunc(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		_, _ = io.WriteString(rw, r.Host)
	})}))
	for name, status := range map[string]int{"api.example.com": 200, "gone.example.com": 503} {
		w.known.Apply(workloads.Update{
			Services: []*mesh.Service{{Name: "cart", Namespace: "shop", Hostname: service.Hostname, VIPs: []mesh.NetAddr{{Addr: vip}}, Ports: []mesh.Port{{Service: 80}}}},
			Workloads: []*mesh.Workload{{UID: "outside", Name: "outside", Namespace: "shop", Hostname: name, Capacity: 1,
				Services: []mesh.Membership{{Service: service, Ports: []mesh.Port{{Service: 80, Target: at.Port()}}}}}},
		})
		resp, err := w.http().Get("http://api.example.com/")
		if readAll(t, resp, err); resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, status)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("looked up %d times for 1 connection", asked.Load())
	}
}
