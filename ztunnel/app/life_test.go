package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

func freePort(t *testing.T) uint16 {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// A whole ztunnel that knows the mesh from a variable: ready, measured, its own
// ports reached through a tunnel under its own identity, and gone when it is told.
func TestLife(t *testing.T) {
	own, client := netnstest.Pair(t)
	address := netnstest.PairA4.Addr()
	known := fmt.Sprintf("workloads:\n- {uid: own, name: ztunnel-x, namespace: istio-system, serviceAccount: ztunnel, workloadIps: [%s], services: {}}\n", address)
	cfg := parse(t, "XDS_ADDRESS=", "FAKE_CA=true", "INPOD_UDS=", "ENABLE_ORIG_SRC=false", "TRUST_DOMAIN=own.example",
		"POD_NAME=ztunnel-x", "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=ztunnel", "LOCAL_XDS="+known)
	cfg.AdminPort, cfg.StatsPort, cfg.ReadyPort = freePort(t), freePort(t), freePort(t)
	var log runtest.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	serving := make(chan *App, 1)
	go func() {
		ended <- logging.During(&log, 0, func(w *logging.Writer) error {
			a, err := New(cfg, w)
			if err != nil {
				return err
			}
			info, id, _ := cfg.Own()
			a.own = a.node.NewOwn(info, id, own) // instead of this process's namespace
			serving <- a
			return a.Run(ctx)
		})
	}()
	select {
	case <-serving:
	case err := <-ended:
		t.Fatal(err)
	}
	tunnels := netip.AddrPortFrom(address, mesh.PortHBONE)
	hbonetest.Until(t, "ztunnel to be ready", func() bool { return get(cfg.ReadyPort, "/healthz/ready") == "ready\n" && open(client, tunnels) })
	serveOne(t, own)
	if text, err := through(t, client, netip.AddrPortFrom(address, 8080)); err != nil || text != "metrics" {
		t.Errorf("through the tunnel: %q, %v", text, err)
	}
	measured := get(cfg.StatsPort, "/metrics")
	for _, want := range []string{"culvert_log_lines_dropped_total 0", `culvert_certificate_requests_total{result="ok"} 1`,
		`culvert_certificate_expiration_timestamp_seconds{identity="spiffe://own.example/ns/istio-system/sa/ztunnel"}`} {
		if !strings.Contains(measured, want) {
			t.Errorf("no %s in metrics:\n%s", want, measured)
		}
	}
	if dump := get(cfg.AdminPort, "/config_dump"); !strings.Contains(dump, "own.example") {
		t.Errorf("dump:\n%s", dump)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if open(client, tunnels) {
		t.Error("15008 is still open")
	}
	if !strings.Contains(log.String(), "stopped") {
		t.Errorf("log:\n%s", log.String())
	}
}

// get returns the answer of a local port, "" unless it is a success.
func get(port uint16, path string) string {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(text)
}

// open reports whether a port is listened on.
func open(from *netns.NS, to netip.AddrPort) bool {
	c, err := from.Dial(context.Background(), to, netns.DialOptions{})
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// serveOne answers one connection to port 8080 of a namespace.
func serveOne(t *testing.T, ns *netns.NS) {
	l, err := ns.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), 8080), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "metrics")
			c.Close()
		}
	}()
}

// through opens a tunnel to ztunnel and reads what the other end says.
func through(t *testing.T, from *netns.NS, to netip.AddrPort) (string, error) {
	t.Helper()
	scraper := mesh.Identity{TrustDomain: "own.example", Namespace: "monitoring", ServiceAccount: "prometheus"}
	cache := certs.NewCache(selfsigned.Fixed(), certs.CacheConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- cache.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	pool := h2.NewPool(h2.PoolConfig{
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return from.Dial(ctx, to, netns.DialOptions{})
		},
		TLS: func(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
			return certs.ClientTLS(ctx, cache, to.Source, to.Expect)
		},
	})
	defer pool.Close()
	s, _, err := pool.Open(t.Context(), hbone.Peer{
		Source: scraper, LocalIP: netnstest.PairB4.Addr(), Addr: netip.AddrPortFrom(to.Addr(), mesh.PortHBONE),
		Expect: []mesh.Identity{{TrustDomain: "own.example", Namespace: "istio-system", ServiceAccount: "ztunnel"}},
	}, hbone.Request{Authority: to.String()})
	if err != nil {
		return "", err
	}
	defer s.Close()
	text, err := io.ReadAll(s)
	return string(text), err
}
