package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	stdhttp "net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
	waypointxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

func TestParseConfig(t *testing.T) {
	t.Parallel()
	good := []string{"POD_NAME=wp-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=wp", "INSTANCE_IP=10.1.2.3", "XDS_ADDRESS=cp:15012",
		"TERMINATION_GRACE_PERIOD_SECONDS=60", "MINIMUM_DRAIN_DURATION=5s"}
	c, err := ParseConfig(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.XDS.Address != "https://cp:15012" || c.CA.Address != c.XDS.Address || c.Gateway != "wp" || c.DrainTime != 55*time.Second || c.MinDrain != 5*time.Second ||
		c.Identity().String() != "spiffe://cluster.local/ns/shop/sa/wp" || c.Ports.HBONE != 15008 {
		t.Errorf("%+v", c)
	}
	_, err = ParseConfig([]string{"POD_NAME=wp", "INSTANCE_IP=x", "XDS_ADDRESS=ftp://a", "TERMINATION_GRACE_PERIOD_SECONDS=soon", "ADMIN_PORT=-1"})
	for _, name := range []string{"POD_NAMESPACE", "SERVICE_ACCOUNT", "INSTANCE_IP", "XDS_ADDRESS", "TERMINATION_GRACE_PERIOD_SECONDS", "ADMIN_PORT"} {
		if err == nil || !strings.Contains(err.Error(), name+": ") {
			t.Errorf("%s is not named in %v", name, err)
		}
	}
	if err := Main(context.Background(), []string{"serve"}, good, io.Discard); err == nil {
		t.Error("an unknown argument is accepted")
	}
}

// TestAcceptsOn: told to end, a waypoint is not ready at once, and accepts for MinDrain
// more; the end of another part is the end of that.
func TestAcceptsOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		min, cut, end time.Duration // cut: after so long another part ends
	}{
		{"at once", 0, time.Hour, 0},
		{"a while longer", 5 * time.Second, time.Hour, 5 * time.Second},
		{"cut short", 5 * time.Second, time.Second, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ready := true
				a := &App{cfg: Config{MinDrain: c.min}, log: slog.New(slog.DiscardHandler), gates: gates{draining: func() { ready = false }}}
				ctx, cut := context.WithTimeout(t.Context(), time.Second+c.cut)
				defer cut()
				serving, told := context.WithCancel(ctx)
				accepting, done := a.accepting(ctx, serving)
				defer done()
				time.Sleep(time.Second)
				synctest.Wait()
				if accepting.Err() != nil || !ready {
					t.Fatal("it ends before it is told to")
				}
				told()
				start := time.Now()
				synctest.Wait()
				if ready {
					t.Error("it is still ready")
				}
				<-accepting.Done()
				if took := time.Since(start); took != c.end {
					t.Errorf("it accepted for %s more, want %s", took, c.end)
				}
			})
		})
	}
}

func freePort(t *testing.T) uint16 {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// A whole waypoint: configuration from a control plane, a request through a
// tunnel, its traces in log, metrics and dump, and a drain that lets it end.
func TestLife(t *testing.T) {
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	origin := &stdhttp.Server{Handler: stdhttp.HandlerFunc(func(rw stdhttp.ResponseWriter, r *stdhttp.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
		fmt.Fprint(rw, "hello from ", r.URL.Path)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = origin.Serve(ln) }()
	defer origin.Close()

	control := xdstest.New(t, nil)
	cfg, err := ParseConfig([]string{"POD_NAME=wp-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=wp", "INSTANCE_IP=127.0.0.1",
		"XDS_ADDRESS=" + control.URL(), "AUTH_TOKEN=t", "LOG_FORMAT=json"})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Ports = Ports{freePort(t), freePort(t), freePort(t), freePort(t)}
	var log runtest.Buffer
	w := logging.NewWriter(&log, 0)
	written, logged := context.WithCancel(context.Background())
	wrote := make(chan error, 1)
	go func() { wrote <- w.Run(written) }()
	a, err := New(cfg, w)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	a.certs = certs.NewCache(authority, certs.CacheConfig{}) // instead of the control plane's CA
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	control.Stop()
	go func() { ended <- a.Run(ctx) }()
	defer cancel()

	ready := fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", cfg.Ports.Ready)
	if text := awaitStatus(t, ready, 500); !strings.Contains(text, "configuration") {
		t.Errorf("before it knows its configuration: %q", text)
	}
	control.Start()
	teach(control, ln.Addr().(*net.TCPAddr).AddrPort())
	awaitStatus(t, ready, 200)

	client := newClient(t, authority, cfg)
	resp, err := client.Get("http://cart/fast")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != "hello from /fast" {
		t.Errorf("%d %q", resp.StatusCode, b)
	}
	resp.Body.Close()
	// A request is counted after its last byte, which may be after the client has it.
	var metrics string
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(metrics, `istio_requests_total{`) && time.Now().Before(end); {
		metrics = awaitStatus(t, fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", cfg.Ports.Metrics), 200)
	}
	for _, want := range []string{`istio_requests_total{`, `reporter="waypoint"`, `response_code="200"`, `destination_service_name="cart"`,
		`source_principal="spiffe://cluster.local/ns/shop/sa/web"`, `istio_request_duration_milliseconds_bucket`,
		`istio_xds_message_total{`, `culvert_certificate_request_duration_seconds_count`, `culvert_log_lines_dropped_total 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in metrics", want)
		}
	}
	dump := awaitStatus(t, fmt.Sprintf("http://127.0.0.1:%d/config_dump", cfg.Ports.Admin), 200)
	if !strings.Contains(dump, "shop/cart/80") {
		t.Error("the destination is not in the dump")
	}

	slow := make(chan string, 1)
	go func() {
		resp, err := client.Get("http://cart/slow")
		if err != nil {
			slow <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		slow <- fmt.Sprint(string(b), err, resp.Close)
	}()
	<-arrived
	cancel()
	awaitStatus(t, ready, 500)
	close(release)
	if got := <-slow; got != "hello from /slow<nil> true" {
		t.Errorf("while draining: %s", got)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("does not end")
	}
	logged()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	for _, want := range []string{`"scope":"access"`, "/fast", "draining"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in the log:\n%s", want, log.String())
		}
	}
}

// awaitStatus asks until the answer has the status.
func awaitStatus(t *testing.T, url string, status int) string {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		resp, err := stdhttp.Get(url)
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == status {
				return string(b)
			}
			err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", url, err)
		}
	}
}

var vip = netip.MustParseAddr("10.96.0.1")

// teach tells the waypoint one service with one plain endpoint.
func teach(s *xdstest.Server, origin netip.AddrPort) {
	s.Set(waypointxds.ClusterTypeURL, "outbound|80||cart", "1", &clusterv3.Cluster{Name: "outbound|80||cart",
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"culvert": {Fields: map[string]*structpb.Value{
			"namespace": structpb.NewStringValue("shop"), "hostname": structpb.NewStringValue("cart"), "port": structpb.NewNumberValue(80)}}}},
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}})
	bad := &routev3.RouteConfiguration{Name: "bad", InternalOnlyHeaders: []string{"x"}} // not implemented: must not keep the rest away
	s.Set(waypointxds.RouteTypeURL, "bad", "1", bad)
	s.Set(workload.TypeURL, "shop/cart", "1", &workload.Address{Type: &workload.Address_Service{Service: workload.FromService(&mesh.Service{
		Name: "cart", Namespace: "shop", Hostname: "cart", VIPs: []mesh.NetAddr{{Addr: vip}}, Ports: []mesh.Port{{Service: 80, Target: origin.Port()}}})}})
	s.Set(workload.TypeURL, "pod", "1", &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(&mesh.Workload{
		UID: "pod", Name: "cart-1", Namespace: "shop", Addresses: []netip.Addr{origin.Addr()}, Capacity: 1, TrustDomain: "cluster.local",
		Services: []mesh.Membership{{Service: mesh.ServiceName{Namespace: "shop", Hostname: "cart"},
			Ports: []mesh.Port{{Service: 80, Target: origin.Port()}}}}})}})
	s.Set(waypointpb.TypeURL, "shop/cart/80", "1", &waypointpb.Destination{Kind: &waypointpb.Destination_Service{Service: &waypointpb.Service{
		Namespace: "shop", Hostname: "cart", Port: 80, Protocol: waypointpb.Protocol_HTTP, Cluster: "outbound|80||cart",
		Addresses: []*waypointpb.NetworkAddress{{Address: vip.AsSlice()}}}}})
}

// newClient is a pod's HTTP client behind its ztunnel.
func newClient(t *testing.T, authority *selfsigned.Authority, cfg Config) *stdhttp.Client {
	web := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	svid, err := authority.Issue(context.Background(), web)
	if err != nil {
		t.Fatal(err)
	}
	pool := h2.NewPool(h2.PoolConfig{
		Dial: dial,
		TLS: func(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
			return certs.ClientTLS(ctx, certs.Fixed{web: svid}, web, to.Expect)
		},
	})
	t.Cleanup(func() { pool.Close() })
	peer := hbone.Peer{Source: web, Expect: []mesh.Identity{cfg.Identity()},
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), cfg.Ports.HBONE)}
	tr := &stdhttp.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		s, _, err := pool.Open(ctx, peer, hbone.Request{Authority: vip.String() + ":80"})
		if err != nil {
			return nil, err
		}
		return &conn{s}, nil
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &stdhttp.Client{Transport: tr}
}

// conn makes a tunnel's stream a net.Conn.
type conn struct{ hbone.Stream }

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.Stream.LocalAddr()) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Stream.RemoteAddr()) }
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
