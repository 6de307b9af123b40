package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	t.Parallel()
	env := func(k string) string { return map[string]string{"HOSTNAME": "cart-1", "VERSION": "v2"}[k] }
	cfg, err := ParseConfig([]string{"--http=8080,8081", "--tcp=9000", "--service=cart"}, env)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.HTTP) != 2 || len(cfg.TCP) != 1 || cfg.Pod != "cart-1" || cfg.Version != "v2" || cfg.Service != "cart" {
		t.Errorf("got %+v", cfg)
	}
	for _, bad := range [][]string{{"--http=x"}, {"--http=0"}, {"--nonsense"}, {"stray"}} {
		if _, err := ParseConfig(bad, env); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(Config{Pod: "cart-1", Service: "cart", Version: "v2"}.Handler())
	t.Cleanup(srv.Close)

	body, resp := get(t, srv.URL+"/a?b=c", "")
	if !strings.Contains(body, "hello from cart-1 (cart v2)") || !strings.Contains(body, "/a?b=c") || resp.Header.Get(HeaderVersion) != "v2" {
		t.Errorf("text answer:\n%s", body)
	}
	body, _ = get(t, srv.URL, "application/json")
	var a Answer
	if err := json.Unmarshal([]byte(body), &a); err != nil || a.Pod != "cart-1" || a.Header.Get("Accept") == "" {
		t.Errorf("JSON answer %q: %v", body, err)
	}
	if _, resp = get(t, srv.URL+"/?status=503", ""); resp.StatusCode != 503 {
		t.Errorf("status=503 gave %d", resp.StatusCode)
	}
	if _, resp = get(t, srv.URL+"/?status=x", ""); resp.StatusCode != 400 {
		t.Errorf("status=x gave %d", resp.StatusCode)
	}
	if body, _ = get(t, srv.URL+"/?size=100000&delay=1ms", ""); len(body) != 100000 {
		t.Errorf("size=100000 gave %d bytes", len(body))
	}
	resp, err := http.Post(srv.URL, "text/plain", strings.NewReader("over and back"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "over and back" {
		t.Errorf("POST came back as %q", b)
	}
}

func get(t *testing.T, url, accept string) (string, *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), resp
}

// TestTCP: everything comes back, and the half-close too.
func TestTCP(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveTCP(ctx, l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := bytes.Repeat([]byte("culvert "), 100_000)
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, want %d: %v", len(got), len(sent), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
