package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	stdhttp "net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/config"
)

func retrying(r *config.Retry) *config.RouteTable {
	f := toCart()
	f.Retry = r
	return route(config.Route{Name: "r", Path: config.PathMatch{Value: "/"}, Forward: f})
}

// TestRetryCodes: answers with a listed code are asked for again, with the same
// body, as often as the route says; other answers are passed on.
func TestRetryCodes(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{routes: retrying(&config.Retry{Attempts: 2, Codes: []int{503}, Backoff: time.Millisecond})})
	var asked atomic.Int32
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		body, _ := io.ReadAll(r.Body)
		n := asked.Add(1)
		switch {
		case r.URL.Path == "/other":
			rw.WriteHeader(500)
		case r.URL.Path == "/never" || n < 3:
			rw.WriteHeader(503)
		}
		fmt.Fprintf(rw, "%d %s", n, body)
	})
	for _, c := range []struct {
		path, body, want string
		status           int
	}{
		{"/", "", "3 ", 200}, {"/", "small", "3 small", 200}, {"/never", "b", "3 b", 503}, {"/other", "b", "1 b", 500},
		{"/never", strings.Repeat("l", 100_000), "1 l", 503}, // too long to be kept
	} {
		asked.Store(0)
		resp, err := w.http().Post("http://cart"+c.path, "text/plain", strings.NewReader(c.body))
		if got := readAll(t, resp, err); resp.StatusCode != c.status || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s with %d bytes: %d %.20q, want %d %q", c.path, len(c.body), resp.StatusCode, got, c.status, c.want)
		}
	}
}

// TestRetryReset: an endpoint that closes without an answer is asked again, which
// it is not without the route's word.
func TestRetryReset(t *testing.T) {
	leakCheck(t)
	for attempts, want := range map[int]int{0: 503, 1: 200} {
		w := newWorld(t, options{routes: retrying(&config.Retry{Attempts: attempts})})
		var asked atomic.Int32
		w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
			if asked.Add(1) == 1 {
				panic(stdhttp.ErrAbortHandler)
			}
		})
		resp, err := w.http().Get("http://cart/")
		if readAll(t, resp, err); resp.StatusCode != want {
			t.Errorf("with %d retries: %d, want %d", attempts, resp.StatusCode, want)
		}
	}
}

// TestRetryTimeout: the time of one try ends the try, the route's time the request.
func TestRetryTimeout(t *testing.T) {
	leakCheck(t)
	table := retrying(&config.Retry{Attempts: 5, TryTimeout: 100 * time.Millisecond})
	w := newWorld(t, options{routes: table})
	release := make(chan struct{})
	defer close(release)
	var asked atomic.Int32
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		if asked.Add(1) < 3 || r.URL.Path == "/never" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})
	resp, err := w.http().Get("http://cart/")
	if readAll(t, resp, err); resp.StatusCode != 200 || asked.Load() != 3 {
		t.Errorf("%d after %d tries, want 200 after 3", resp.StatusCode, asked.Load())
	}
	table.Hosts[0].Routes[0].Forward.Timeout = 250 * time.Millisecond
	w.configure(options{routes: table})
	asked.Store(0)
	resp, err = w.http().Get("http://cart/never")
	if readAll(t, resp, err); resp.StatusCode != 504 || asked.Load() > 3 {
		t.Errorf("%d after %d tries, want 504 after 3 at most", resp.StatusCode, asked.Load())
	}
}

// TestMirror: the copy has the request's head and body, and whatever becomes of it
// the client is answered by the other.
func TestMirror(t *testing.T) {
	leakCheck(t)
	f := toCart()
	f.Mirrors = []config.Mirror{{Cluster: "outbound|80||cart", Millionths: 1_000_000}, {Cluster: "empty", Millionths: 1_000_000}, {Cluster: "outbound|80||cart"}, {Cluster: "none", Millionths: 1}}
	w := newWorld(t, options{routes: route(config.Route{Name: "m", Path: config.PathMatch{Value: "/"}, Forward: f})})
	var mu sync.Mutex
	var seen [][]byte
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Appendf(nil, "%s %s %s %s %s", r.Method, r.Host, r.URL, r.Header.Get("X-A"), body))
	})
	req, _ := stdhttp.NewRequest("PUT", "http://cart/p?q", strings.NewReader("body"))
	req.Header.Set("X-A", "a")
	resp, err := w.http().Do(req)
	if readAll(t, resp, err); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	await(t, "the copy", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) == 2
	})
	if want := []byte("PUT cart /p?q a body"); !bytes.Equal(seen[0], want) || !bytes.Equal(seen[1], want) {
		t.Errorf("%q, want %q twice", seen, want)
	}
}
