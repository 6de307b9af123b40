package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func record() *Connection {
	return &Connection{
		Source: Party{
			Addr: netip.MustParseAddrPort("10.244.1.7:51234"), Workload: "frontend-5d", Namespace: "shop",
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "frontend"}, Cluster: "Kubernetes",
		},
		Destination: Party{
			Addr: netip.MustParseAddrPort("10.244.2.9:15008"), Workload: "cart-7c", Namespace: "shop",
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}, Cluster: "Kubernetes",
		},
		HBONEAddr: "10.244.2.9:8080", Service: "cart.shop.svc.cluster.local",
		Direction: Outbound, BytesSent: 120, BytesRecv: 4500, Duration: 12 * time.Millisecond,
	}
}

func request() *Request {
	c := record()
	return &Request{
		Source: c.Source, Destination: c.Destination, Service: c.Service,
		Method: "GET", Authority: "cart", Path: "/items?id=1", Protocol: "HTTP/1.1", Route: "shop/cart/8080",
		Upstream: "outbound|8080||cart.shop.svc.cluster.local", Status: 200, RequestBytes: 10, ResponseBytes: 20,
		Duration: 7 * time.Millisecond, UpstreamLatency: 5 * time.Millisecond, RequestID: "r-1", UserAgent: "curl/8",
	}
}

func logger(t testing.TB, out io.Writer, format logging.Format, filter string) (*Logger, *logging.Levels) {
	t.Helper()
	levels, err := logging.NewLevels(filter)
	if err != nil {
		t.Fatal(err)
	}
	return New(out, format, levels), levels
}

// last returns the last line without its time.
func last(out *bytes.Buffer) string {
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	_, rest, _ := strings.Cut(lines[len(lines)-1], "\t")
	return rest
}

const parties = `src.addr=10.244.1.7:51234 src.workload="frontend-5d" src.namespace="shop" src.identity="spiffe://cluster.local/ns/shop/sa/frontend" src.cluster="Kubernetes" `

const connection = parties + `dst.addr=10.244.2.9:15008 dst.hbone_addr="10.244.2.9:8080" dst.service="cart.shop.svc.cluster.local" dst.workload="cart-7c" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="Kubernetes" direction="outbound"`

func TestPlainLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l, _ := logger(t, &out, logging.Plain, "debug")
	check := func(want string) {
		t.Helper()
		if got := last(&out); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	c := record()
	l.Opened(c)
	check("debug\taccess\tconnection opened\t" + connection)
	l.Complete(c)
	outcome := ` bytes_sent=120 bytes_recv=4500 duration="12ms"`
	check("info\taccess\tconnection complete\t" + connection + outcome)
	c.Err = errors.New("connection refused\nsrc.addr=forged")
	l.Complete(c)
	check("error\taccess\tconnection complete\t" + connection + outcome + ` error="connection refused\nsrc.addr=forged"`)
	l.Failed(&Connection{Source: Party{Addr: c.Source.Addr}, Err: errors.New("no")})
	check("warn\taccess\tconnection failed\t" + `src.addr=10.244.1.7:51234 direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms" error="no"`)
	l.Request(request())
	check("info\taccess\trequest\t" + parties +
		`dst.addr=10.244.2.9:15008 dst.workload="cart-7c" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="Kubernetes" dst.service="cart.shop.svc.cluster.local" ` +
		`method="GET" authority="cart" path="/items?id=1" protocol="HTTP/1.1" request_id="r-1" user_agent="curl/8" route="shop/cart/8080" upstream="outbound|8080||cart.shop.svc.cluster.local" ` +
		`status=200 flags="-" bytes_recv=10 bytes_sent=20 duration="7ms" upstream_duration="5ms"`)
}

func TestJSONLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l, _ := logger(t, &out, logging.JSON, "info")
	c := record()
	c.Err = errors.New("no healthy upstream: \"x\"")
	l.Complete(c)
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"level": "error", "scope": "access", "message": "connection complete", "src.addr": "10.244.1.7:51234",
		"src.identity": "spiffe://cluster.local/ns/shop/sa/frontend", "dst.hbone_addr": "10.244.2.9:8080", "direction": "outbound",
		"bytes_sent": 120.0, "bytes_recv": 4500.0, "duration": "12ms", "error": "no healthy upstream: \"x\"", "dst.cluster": "Kubernetes",
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, got["time"].(string)); err != nil {
		t.Error(err)
	}
}

func TestLevelChangesAtRunTime(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l, levels := logger(t, &out, logging.Plain, "debug,access=info")
	l.Opened(record())
	if out.Len() != 0 {
		t.Error("debug line at info")
	}
	if err := levels.Set("access=off"); err != nil {
		t.Fatal(err)
	}
	l.Complete(record())
	l.Request(request())
	if out.Len() != 0 {
		t.Error("line at off")
	}
	levels.Reset()
	l.Complete(record())
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("after reset: %q", out.String())
	}
}

func TestNoAllocationPerLine(t *testing.T) {
	for name, format := range map[string]logging.Format{"plain": logging.Plain, "json": logging.JSON} {
		l, _ := logger(t, io.Discard, format, "info")
		c, r := record(), request()
		l.Complete(c)
		l.Request(r)
		if n := testing.AllocsPerRun(200, func() { l.Complete(c); l.Request(r); l.Opened(c) }); n >= 1 && !raceDetector {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzRequestLine(f *testing.F) {
	f.Add("GET", "/a\nb", "host\x00")
	f.Fuzz(func(t *testing.T, method, path, authority string) {
		for _, format := range []logging.Format{logging.Plain, logging.JSON} {
			var out bytes.Buffer
			l, _ := logger(t, &out, format, "info")
			l.Request(&Request{Method: method, Path: path, Authority: authority, Upstream: path, Err: errors.New(path)})
			if strings.Count(out.String(), "\n") != 1 {
				t.Fatalf("%q", out.String())
			}
		}
	})
}

func BenchmarkComplete(b *testing.B) {
	l, _ := logger(b, io.Discard, logging.JSON, "info")
	c := record()
	b.ReportAllocs()
	for b.Loop() {
		l.Complete(c)
	}
}
