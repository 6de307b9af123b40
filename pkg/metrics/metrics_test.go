package metrics

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

func workload(ns, name string) *mesh.Workload {
	return &mesh.Workload{
		Name: name + "-7c9f", Namespace: ns, WorkloadName: name, CanonicalName: name, CanonicalRevision: "v1",
		ServiceAccount: name, TrustDomain: "cluster.local", Cluster: "Kubernetes",
		Locality: mesh.Locality{Region: "eu", Zone: "eu-1"},
	}
}

var (
	front = workload("shop", "frontend")
	cart  = workload("shop", "cart")
	svc   = &mesh.Service{Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"}
	flow  = Flow{
		Reporter: Source, Source: front, Destination: cart, Service: svc,
		SourceIdentity: front.Identity(), DestinationIdentity: cart.Identity(), MutualTLS: true,
	}
)

// scrape returns the exposition text of one family prefix.
func scrape(t testing.TB, reg *prometheus.Registry, prefix string) string {
	t.Helper()
	rec := httptest.NewRecorder()
	Handler(reg).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", rec.Code, rec.Body)
	}
	var out strings.Builder
	for line := range strings.Lines(rec.Body.String()) {
		if strings.Contains(line, prefix) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestTCPExposition(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	tcp := NewTCP(reg, TCPConfig{})
	var up, down atomic.Uint64
	c := tcp.Series(flow).Open(&up, &down)
	up.Store(100)
	down.Store(2000)
	c.Close(nil)
	tcp.Series(flow).Open(&up, &down) // stays open: its bytes count at the scrape
	denied := Flow{Reporter: Destination, SourceIdentity: front.Identity(), Destination: cart, MutualTLS: true}
	tcp.Series(denied).Failed(reason.DeniedByPolicy)
	nobody := tcp.Series(Flow{Reporter: Destination})
	nobody.Open(nil, nil).Close(reason.New(reason.ConnectRefused, "dial", "10.0.0.1:80", nil))
	tcp.SocketOpened(Source)
	tcp.SocketOpened(Source)
	tcp.SocketClosed(Source)
	golden.File(t, "testdata/tcp.txt", scrape(t, reg, "istio_"))
}

func TestRequestExposition(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	requests := NewRequests(reg, Config{})
	f := flow
	f.Reporter = Waypoint
	s := requests.Series(RequestFlow{Flow: f, Protocol: "http"})
	s.Observe(Response{Code: 200, Duration: 7 * time.Millisecond, RequestBytes: 300, ResponseBytes: 12000})
	s.Observe(Response{Code: 200, Duration: 2 * time.Hour})
	failed := Flow{Reporter: Waypoint, Source: front, Service: svc}
	requests.Series(RequestFlow{Flow: failed, Protocol: "http"}).Observe(Response{Code: 503, Flags: "UH"})
	requests.Series(RequestFlow{Flow: f, Protocol: "grpc"}).Observe(Response{Code: 200, GRPCStatus: "0", RequestMessages: 1, ResponseMessages: 3})
	golden.File(t, "testdata/requests.txt", scrape(t, reg, "istio_"))
}

func TestRegistryHasWhatDashboardsRead(t *testing.T) {
	t.Parallel()
	reg := NewRegistry("ztunnel", "v1.2")
	NewCertificates(reg).Issued(cart.Identity(), time.Millisecond, errors.New("no"))
	CertificateExpiry(reg, func(yield func(mesh.Identity, time.Time) bool) { yield(cart.Identity(), time.Unix(1800000000, 0)) })
	xds := NewXDS(reg)
	xds.ConnectionTerminated("Error")
	xds.Message("type/a", 12)
	LogDrops(reg, func() uint64 { return 7 })
	for _, want := range []string{
		`istio_build{component="ztunnel",tag="v1.2"} 1`, "process_open_fds ", "process_max_fds ", "go_goroutines ",
		`culvert_certificate_requests_total{result="error"} 1`, "culvert_log_lines_dropped_total 7",
		`culvert_certificate_expiration_timestamp_seconds{identity="spiffe://cluster.local/ns/shop/sa/cart"} 1.8e+09`,
		`istio_xds_connection_terminations_total{reason="Error"} 1`, `istio_xds_message_total{url="type/a"} 1`,
		`istio_xds_message_bytes_total{url="type/a"} 12`,
	} {
		if scrape(t, reg, want) == "" {
			t.Errorf("no %q", want)
		}
	}
}

func TestLiveBytesAreSeenBeforeTheEnd(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	tcp := NewTCP(reg, TCPConfig{})
	var up, down atomic.Uint64
	conn := tcp.Series(flow).Open(&up, &down)
	value := func(name string) string {
		return strings.TrimSpace(scrape(t, reg, name+"{")[strings.LastIndex(scrape(t, reg, name+"{"), " "):])
	}
	for _, n := range []string{"10", "20"} {
		up.Add(10)
		down.Add(100)
		if got := value("istio_tcp_received_bytes_total"); got != n {
			t.Errorf("received %s, want %s", got, n)
		}
	}
	up.Add(5)
	conn.Close(nil)
	conn.Close(nil)
	if got := value("istio_tcp_received_bytes_total"); got != "25" {
		t.Errorf("received %s at the end", got)
	}
	if got := value("istio_tcp_sent_bytes_total"); got != "200" {
		t.Errorf("sent %s at the end", got)
	}
	if got := value("istio_tcp_connections_closed_total"); got != "1" {
		t.Errorf("closed %s times", got)
	}
}

func TestUntrustedLabelValues(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	tcp := NewTCP(reg, TCPConfig{MaxSeries: 3})
	evil := workload("a\nb\"c\\", "\xff\xfe"+strings.Repeat("ü", 1000))
	tcp.Series(Flow{Source: evil}).Open(nil, nil)
	text := scrape(t, reg, "istio_tcp_connections_opened_total{")
	if strings.Count(text, "\n") != 1 || len(text) > 4000 {
		t.Errorf("exposition:\n%s", text)
	}
	for i := range 10 {
		tcp.Series(Flow{Source: workload("x", strings.Repeat("w", i+1))}).Open(nil, nil)
	}
	if n := strings.Count(scrape(t, reg, "istio_tcp_connections_opened_total{"), "\n"); n != 4 {
		t.Errorf("%d series, want the 3 allowed and the one for the rest", n)
	}
}

// TestDepartedSeriesExpire: only when a workload is gone, nothing is open, and
// some time has passed; and a handle kept across the expiry still counts.
func TestDepartedSeriesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var departed atomic.Bool
		cfg := Config{Alive: func(ns, name string) bool { return name != "cart" || !departed.Load() }}
		reg := prometheus.NewRegistry()
		tcp, requests := NewTCP(reg, cfg), NewRequests(reg, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { _ = tcp.Run(ctx) }()
		go func() { _ = requests.Run(ctx) }()
		kept := tcp.Series(flow)
		conn := kept.Open(nil, nil)
		keptRequests := requests.Series(RequestFlow{Flow: flow, Protocol: "http"})
		keptRequests.Observe(Response{Code: 200})
		count := func(name string) int { return strings.Count(scrape(t, reg, name+"{"), "\n") }
		expect := func(when string, opened, total int) {
			t.Helper()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if n := count("istio_tcp_connections_opened_total"); n != opened {
				t.Errorf("%s: %d connection series, want %d", when, n, opened)
			}
			if n := count("istio_requests_total"); n != total {
				t.Errorf("%s: %d request series, want %d", when, n, total)
			}
		}
		expect("alive", 1, 1)
		departed.Store(true)
		expect("departed with an open connection", 1, 0)
		conn.Close(nil)
		expect("departed and closed", 0, 0)
		kept.Open(nil, nil)
		keptRequests.Observe(Response{Code: 200})
		if text := scrape(t, reg, "istio_requests_total{"); !strings.HasSuffix(text, " 2\n") {
			t.Errorf("the kept handle lost its count: %s", text)
		}
		expect("used again", 1, 0)
		cancel()
		synctest.Wait()
	})
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	tcp := NewTCP(reg, TCPConfig{Idle: time.Nanosecond, Alive: func(string, string) bool { return false }})
	var wg sync.WaitGroup
	const each, users = 500, 4
	for range users {
		wg.Go(func() {
			var n atomic.Uint64
			for range each {
				c := tcp.Series(flow).Open(&n, nil)
				n.Add(1)
				c.Close(nil)
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			tcp.table.sweep(time.Now())
			scrape(t, reg, "istio_")
		}
	})
	wg.Wait()
	for _, s := range tcp.table.all() {
		if s.live != nil {
			t.Error("a closed connection is still listed")
		}
	}
}

func BenchmarkConnection(b *testing.B) {
	tcp := NewTCP(prometheus.NewRegistry(), TCPConfig{})
	var up, down atomic.Uint64
	b.ReportAllocs()
	for b.Loop() {
		tcp.Series(flow).Open(&up, &down).Close(nil)
	}
}

func BenchmarkRequest(b *testing.B) {
	s := NewRequests(prometheus.NewRegistry(), Config{}).Series(RequestFlow{Flow: flow, Protocol: "http"})
	b.ReportAllocs()
	for b.Loop() {
		s.Observe(Response{Code: 200, Duration: 3 * time.Millisecond, RequestBytes: 100, ResponseBytes: 1000})
	}
}

func BenchmarkScrape1000Series(b *testing.B) {
	reg := prometheus.NewRegistry()
	tcp := NewTCP(reg, TCPConfig{})
	for i := range 1000 {
		f := flow
		f.SourceIdentity.ServiceAccount = strings.Repeat("a", i%100+1) + string(rune('a'+i/100))
		tcp.Series(f).Open(nil, nil)
	}
	for b.Loop() {
		rec := httptest.NewRecorder()
		rec.Body = new(bytes.Buffer)
		Handler(reg).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}

func TestHotPathAllocations(t *testing.T) {
	tcp := NewTCP(prometheus.NewRegistry(), TCPConfig{})
	requests := NewRequests(prometheus.NewRegistry(), Config{})
	tcp.Series(flow)
	if n := testing.AllocsPerRun(100, func() { tcp.Series(flow).Open(nil, nil).Close(nil) }); n > 1 {
		t.Errorf("%v allocations per connection, want at most 1", n)
	}
	f := RequestFlow{Flow: flow, Protocol: "http"}
	requests.Series(f).Observe(Response{Code: 200})
	if n := testing.AllocsPerRun(100, func() { requests.Series(f).Observe(Response{Code: 200}) }); n > 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

func TestStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewXDS(prometheus.NewRegistry())
		expect := func(when string, want time.Duration) {
			t.Helper()
			if got := m.Staleness(); got != want {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}
		time.Sleep(3 * time.Second)
		expect("nobody has answered yet", 3*time.Second)
		m.ConnectionTerminated("ConnectionError")
		expect("nor now", 3*time.Second)
		m.Message("t", 1)
		time.Sleep(time.Hour)
		expect("an idle stream", 0)
		m.ConnectionTerminated("Error")
		time.Sleep(5 * time.Second)
		m.ConnectionTerminated("ConnectionError")
		time.Sleep(5 * time.Second)
		expect("away", 10*time.Second)
	})
}

func TestKnowledgeAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		var heard time.Time
		KnowledgeAge(reg, func() time.Time { return heard })
		for _, want := range []string{" -1\n", " 0\n", " 60\n"} {
			if text := scrape(t, reg, "culvert_knowledge_age_seconds "); !strings.HasSuffix(text, want) {
				t.Errorf("%q, want %q", text, want)
			}
			if heard.IsZero() {
				heard = time.Now()
			} else {
				time.Sleep(time.Minute)
			}
		}
	})
}

func TestLive(t *testing.T) {
	t.Parallel()
	tcp := NewTCP(prometheus.NewRegistry(), TCPConfig{})
	var up, down atomic.Uint64
	up.Store(10)
	down.Store(300)
	open := tcp.Series(flow).Open(&up, &down)
	tcp.Series(flow).Open(&up, nil)
	if got := tcp.Live(Source); got != (Live{2, 300, 20}) {
		t.Errorf("%+v", got)
	}
	if got := tcp.Live(Destination); got != (Live{}) {
		t.Errorf("of the other reporter: %+v", got)
	}
	open.Close(errors.New("over"))
	if got := tcp.Live(Source); got != (Live{1, 0, 10}) {
		t.Errorf("after one has closed: %+v", got)
	}
}
