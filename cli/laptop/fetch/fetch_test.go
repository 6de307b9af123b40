package fetch

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHTTP(t *testing.T) {
	t.Parallel()
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n%2 == 0 {
			w.Header().Set("X-Version", "v2")
			w.WriteHeader(http.StatusForbidden)
		}
		io.WriteString(w, "body of "+r.Host+r.URL.Path)
	}))
	t.Cleanup(srv.Close)

	res, err := Do(t.Context(), Options{URL: srv.URL + "/x", Header: http.Header{"Host": {"shop"}}})
	if err != nil || res.OK != 1 || string(res.Answer.Body) != "body of shop/x" {
		t.Errorf("one request: %v, %v", res, err)
	}
	raw, err := json.Marshal(res)
	var back Result
	if err := errors.Join(err, json.Unmarshal(raw, &back)); err != nil || string(back.Answer.Body) != "body of shop/x" {
		t.Errorf("as JSON %s: read back as %+v, %v", raw, back.Answer, err)
	}
	res, err = Do(t.Context(), Options{URL: srv.URL, Count: 10, By: "X-Version"})
	if err != nil || res.Sent != 10 || res.OK != 5 || res.Status[403] != 5 || res.By["v2"] != 5 {
		t.Errorf("ten requests: %v, %v", res, err)
	}
	if !strings.Contains(res.String(), "status 403: 5") {
		t.Errorf("text:\n%s", res)
	}
}

func TestPaced(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(srv.Close)
	started := make(chan struct{})
	res, err := Do(t.Context(), Options{URL: srv.URL, Every: time.Millisecond, For: 30 * time.Millisecond, Started: func() { close(started) }})
	if err != nil || res.Sent == 0 || res.Failed != 0 {
		t.Errorf("%v, %v", res, err)
	}
	<-started
}

func TestTCP(t *testing.T) {
	t.Parallel()
	addr := echoServer(t)
	res, err := Do(t.Context(), Options{URL: "tcp://" + addr, Bytes: 5 << 20})
	if err != nil || res.OK != 1 || res.Bytes != 5<<20 || len(res.SHA256) != 64 {
		t.Errorf("exchange: %v, %v", res, err)
	}
	res, err = Do(t.Context(), Options{URL: "tcp://" + addr, Count: 7, Every: time.Microsecond})
	if err != nil || res.OK != 7 {
		t.Errorf("conversation: %v, %v", res, err)
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()
	for _, url := range []string{"http://" + dead, "tcp://" + dead} {
		res, err := Do(t.Context(), Options{URL: url})
		if err != nil || res.Failed != 1 || res.Errors["connection refused"] != 1 {
			t.Errorf("%s: %v, %v", url, res, err)
		}
	}
	if _, err := Do(t.Context(), Options{URL: "ftp://x"}); err == nil {
		t.Error("ftp:// was accepted")
	}
	if got := explain(errors.New("x")); got != "x" {
		t.Errorf("explain = %q", got)
	}
}

func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	return l.Addr().String()
}
