package proxy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	stdhttp "net/http"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/filter/rbac"
)

// tcpOrigin starts a server that handles each connection by serve.
func tcpOrigin(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().String()
}

func echo(c *net.TCPConn) {
	// Not socket to socket: the pipes of splice(2) would count as leaked descriptors.
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	_ = c.CloseWrite()
}

func TestTCP(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{protocol: config.TCP})
	w.pod("cart-1", "10.244.0.9", tcpOrigin(t, echo))
	c := w.dialVIP(t)
	const size = 20 << 20
	up, down := sha256.New(), sha256.New()
	go func() {
		_, _ = io.Copy(c, io.TeeReader(&endless{n: size}, up))
		_ = c.CloseWrite()
	}()
	n, err := io.Copy(down, c)
	if err != nil || n != size || !bytes.Equal(up.Sum(nil), down.Sum(nil)) {
		t.Errorf("%d bytes back, %v", n, err)
	}
	await(t, "the connection's line", func() bool {
		w.log.mu.Lock()
		defer w.log.mu.Unlock()
		return len(w.log.conns) == 1
	})
	if l := w.log.conns[0]; l.BytesRecv != size || l.BytesSent != size || l.Err != nil || l.Source.Identity != frontend {
		t.Errorf("logged %+v", l)
	}
}

func TestTCPHalfClose(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{protocol: config.TCP})
	w.pod("cart-1", "10.244.0.9", tcpOrigin(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c) // until the client has ended its direction
		fmt.Fprintf(c, "got %d", len(b))
	}))
	c := w.dialVIP(t)
	fmt.Fprint(c, "12345")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "got 5" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAutoDetects(t *testing.T) {
	leakCheck(t)
	for name, c := range map[string]struct {
		send, want string
		requests   int
		serve      func(*net.TCPConn)
	}{
		"client first": {"\x16\x03\x01 not HTTP", "\x16\x03\x01 not HTTP", 0, echo},
		"server first": {"", "220 ready", 0, func(c *net.TCPConn) { fmt.Fprint(c, "220 ready") }},
		"HTTP": {"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n", 1, func(c *net.TCPConn) {
			var b [512]byte
			_, _ = c.Read(b[:])
			fmt.Fprint(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}},
	} {
		w := newWorld(t, options{protocol: config.Auto, detect: 50 * time.Millisecond})
		w.pod("cart-1", "10.244.0.9", tcpOrigin(t, c.serve))
		conn := w.dialVIP(t)
		if c.send != "" {
			fmt.Fprint(conn, c.send)
		}
		if name != "HTTP" && c.send != "" {
			_ = conn.CloseWrite()
		}
		got, err := io.ReadAll(io.LimitReader(conn, int64(len(c.want))))
		if string(got) != c.want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if c.requests > 0 {
			w.log.last(t, c.requests)
		}
	}
}

func TestTCPDenied(t *testing.T) {
	leakCheck(t)
	deny := rbac.New(rbac.Config{Rules: &rbac.Rules{Action: rbac.Deny, Policies: []rbac.Policy{
		{Name: "shop/nobody", Permissions: []rbac.Rule{rbac.Any{}}, Principals: []rbac.Rule{rbac.Any{}}}}}})
	w := newWorld(t, options{protocol: config.TCP, net: filter.Network{deny}})
	w.pod("cart-1", "10.244.0.9", tcpOrigin(t, echo))
	wantStatus(t, w, vip.String()+":80", stdhttp.StatusForbidden)
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if l := w.log.failed[0]; reason.Of(l.Err) != reason.RBACDenied {
		t.Errorf("logged %v", l.Err)
	}
}

func TestPolicyChangeEndsConnections(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{protocol: config.TCP})
	w.pod("cart-1", "10.244.0.9", tcpOrigin(t, echo))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.proxy.Recheck(ctx) }()
	c := w.dialVIP(t)
	fmt.Fprint(c, "hello")
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatal(err)
	}
	deny := rbac.New(rbac.Config{Rules: &rbac.Rules{Action: rbac.Deny, Policies: []rbac.Policy{
		{Name: "shop/nobody", Permissions: []rbac.Rule{rbac.Any{}}, Principals: []rbac.Rule{rbac.Any{}}}}}})
	w.configure(options{protocol: config.TCP, net: filter.Network{deny}})
	_, _ = io.Copy(io.Discard, c) // ends only when the connection does
	await(t, "the connection's line", func() bool {
		w.log.mu.Lock()
		defer w.log.mu.Unlock()
		return len(w.log.conns) == 1 && reason.Of(w.log.conns[0].Err) == reason.PolicyChanged
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// wantStatus expects a CONNECT to be refused.
func wantStatus(t *testing.T, w *world, authority string, status int) {
	t.Helper()
	_, err := w.connect(context.Background(), authority)
	var refused *hbone.StatusError
	if !errors.As(err, &refused) || refused.Status != status {
		t.Errorf("%s: %v, want status %d", authority, err, status)
	}
}

func TestUnservedAddresses(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	wantStatus(t, w, vip.String()+":81", 404)
	wantStatus(t, w, "10.96.0.2:80", 404)
	wantStatus(t, w, "unknown.example:80", 404)
	wantStatus(t, w, "nonsense", 400)
	wantStatus(t, w, vip.String()+":0", 400)
}

func TestNoEndpoint(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{protocol: config.TCP})
	wantStatus(t, w, vip.String()+":80", 503)
	w.pod("dead", "10.244.0.8", "127.0.0.1:1")
	wantStatus(t, w, vip.String()+":80", 503)
}

func TestWorkloadAddress(t *testing.T) {
	leakCheck(t)
	w := newWorld(t, options{})
	w.origin(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) { fmt.Fprint(rw, r.Host) })
	pod := w.known.Workload("Kubernetes//Pod/shop/cart-1")
	w.store.Publish(config.NewSnapshot(map[string]*config.Destination{
		"pod": {Name: "pod", UID: pod.UID, Addresses: []mesh.NetAddr{{Addr: pod.Addresses[0]}}},
	}, nil, nil))
	c, err := w.connect(context.Background(), "10.244.0.9:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: the-pod\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(c)
	if err != nil || !bytes.HasSuffix(got, []byte("the-pod")) {
		t.Errorf("%q, %v", got, err)
	}
}
