package main

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance/utils/echo"
)

// TestCall: the suite's own reader finds what the server saw in what the client
// prints.
func TestCall(t *testing.T) {
	certificate, err := loadOrMake("", "")
	if err != nil {
		t.Fatal(err)
	}
	listen := func(serve func(net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go serve(l)
		return l.Addr().String()
	}
	web := listen(httpServer("echo-v1-abc", "8080", certificate).Serve)
	secure := listen(func(l net.Listener) error { return httpServer("echo-v1-abc", "8443", certificate).ServeTLS(l, "", "") })
	calls := listen(grpcServer("echo-v1-abc", "7070").Serve)
	raw := listen(func(l net.Listener) error { return echoTCP(l, "echo-v1-abc", "9090") })
	for name, c := range map[string]struct {
		args             []string
		host, port, path string
		header           string
	}{
		"http":  {[]string{"http://" + web + "/some/path?a=b", "--method=PUT", "-H", "X-One:1", "-H", "Host:other"}, "other", "8080", "/some/path?a=b", "1"},
		"https": {[]string{"https://" + secure + "/", "-H", "X-One:1"}, secure, "8443", "/", "1"},
		"grpc":  {[]string{"grpc://" + calls, "-H", "X-One:1"}, calls, "7070", "", "1"},
		"tcp":   {[]string{"--count=1", "tcp://" + raw}, "", "9090", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := call(c.args, &out); err != nil {
				t.Fatal(err)
			}
			got := echo.ParseResponse(out.String())
			if got.Code != "200" || got.Hostname != "echo-v1-abc" || got.Port != c.port || got.Host != c.host || got.URL != c.path || got.IP != "127.0.0.1" ||
				got.RequestHeaders.Get("X-One") != c.header {
				t.Errorf("want host %q, port %s, path %q, X-One %q from the server echo-v1-abc, got\n%s", c.host, c.port, c.path, c.header, got)
			}
		})
	}
}

// TestCount: an empty line is between one answer and the next.
func TestCount(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpcServer("echo-v2-x", "1")
	go s.Serve(l)
	defer s.Stop()
	var out bytes.Buffer
	if err := call([]string{"grpc://" + l.Addr().String(), "--count=3"}, &out); err != nil {
		t.Fatal(err)
	}
	if answers := strings.Split(strings.TrimSpace(out.String()), "\n\n"); len(answers) != 3 {
		t.Errorf("%d answers, want 3:\n%s", len(answers), out.String())
	}
}

func TestRefused(t *testing.T) {
	for _, args := range [][]string{nil, {"http://a", "http://b"}, {"ftp://127.0.0.1"}, {"tcp://127.0.0.1:1"}, {"http://127.0.0.1:1"}, {"grpc://127.0.0.1:1"}} {
		if err := call(args, &bytes.Buffer{}); err == nil {
			t.Errorf("client %q: no error", args)
		}
	}
}
