package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// terminate serves HBONE on a pod's port 15008 with a handler of the test, as a
// network gateway or a waypoint does that is no ztunnel.
func (p *pod) terminate(t *testing.T, handle hbone.Handler) {
	t.Helper()
	id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: p.name}
	svid, err := selfsigned.Fixed(selfsigned.WithLog(slog.New(slog.DiscardHandler))).Issue(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	server := h2.NewServer(h2.ServerConfig{Handler: handle, TLS: func(ctx context.Context) (*tls.Config, error) {
		return certs.ServerTLS(ctx, certs.Fixed{id: svid}, id, certs.ServerOptions{})
	}})
	l, err := p.NS.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), mesh.PortHBONE), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error { return server.Serve(ctx, l) })
	t.Cleanup(func() { server.Close() })
}

// gateway forwards every tunnel, as bytes, to where its authority leads.
type gateway struct {
	*pod
	mu      sync.Mutex
	to      map[string]netip.AddrPort
	callers []mesh.Identity
	headers []hbone.Header
}

func (g *gateway) handle(ctx context.Context, in *hbone.Incoming) {
	g.mu.Lock()
	to, ok := g.to[in.Request.Authority]
	g.callers = append(g.callers, in.Peer)
	g.headers = append(g.headers, in.Request.Header)
	g.mu.Unlock()
	if !ok {
		in.Reject(503)
		return
	}
	c, err := g.NS.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		in.Reject(503)
		return
	}
	defer c.Close()
	if s, err := in.Accept(hbone.Response{}); err == nil {
		s.Pump(ctx, c, nil)
	}
}

// networks is a client in network one and servers in network two, behind a gateway.
type networks struct {
	*field
	client, server *pod
	gw             *gateway
	z1, z2         *ztunnel
}

func newNetworks(t *testing.T) *networks {
	t.Helper()
	n := layNetworks(t)
	n.gw.terminate(t, n.gw.handle)
	n.start()
	return n
}

// layNetworks is newNetworks without the gateway and the ztunnels.
func layNetworks(t *testing.T) *networks {
	t.Helper()
	f := newField(t)
	n := &networks{field: f, gw: &gateway{pod: f.outside("gateway"), to: map[string]netip.AddrPort{}}}
	behind := fmt.Sprintf(`networkGateway: {destination: "two/%s", hboneMtlsPort: 15008}`, n.gw.IP4)
	n.client = f.pod("client", "node-1", "network: one")
	n.server = f.pod("server", "node-2", "network: two", behind,
		`services: {default/echo.default.svc.cluster.local: {80: 7000, 81: 7001}, default/bare.default.svc.cluster.local: {80: 7000}}`,
		`authorizationPolicies: ["default/only-client"]`)
	wp := f.outside("waypoint")
	f.workloads = append(f.workloads, fmt.Sprintf(`- uid: NetworkGateway/two/%[1]s/15008
  name: gateway
  namespace: default
  serviceAccount: gateway
  trustDomain: cluster.local
  network: two
  workloadIps: [%[1]q]
  services: {}
- uid: two/SplitHorizonWorkload/default/gateway/waypoint
  name: waypoint
  namespace: default
  serviceAccount: waypoint
  trustDomain: cluster.local
  network: two
  protocol: HBONE
  workloadIps: []
  %[2]s
  services: {default/waypoint.default.svc.cluster.local: {15008: 15008}}
`, n.gw.IP4, behind))
	service := func(name, vip, more string) {
		f.services = append(f.services, fmt.Sprintf(`- name: %s
  namespace: default
  hostname: %[1]s.default.svc.cluster.local
  vips: [%q]
  ports: {80: 7000, 81: 7001, 15008: 15008}
%s`, name, vip, more))
	}
	service("echo", "one/10.99.0.1", "  subjectAltNames: [\"spiffe://cluster.local/ns/default/sa/server\"]\n")
	service("bare", "one/10.99.0.2", "")
	service("shop", "one/10.99.0.3", "  waypoint: {destination: default/waypoint.default.svc.cluster.local, hboneMtlsPort: 15008}\n")
	service("waypoint", "two/10.99.0.4", "  subjectAltNames: [\"spiffe://cluster.local/ns/default/sa/waypoint\"]\n")
	f.allow("only-client", "client")
	n.server.listen(t, 7000, echo)
	wp.terminate(t, answerAuthority)
	n.gw.to["echo.default.svc.cluster.local:80"] = netip.AddrPortFrom(n.server.IP4, mesh.PortHBONE)
	n.gw.to["echo.default.svc.cluster.local:81"] = n.gw.to["echo.default.svc.cluster.local:80"]
	n.gw.to["shop.default.svc.cluster.local:80"] = netip.AddrPortFrom(wp.IP4, mesh.PortHBONE)
	return n
}

func (n *networks) start() {
	n.t.Helper()
	n.z1 = n.ztunnel("node-1", n.agent("node-1", n.client), nil, "NETWORK=one")
	n.z2 = n.ztunnel("node-2", n.agent("node-2", n.server), nil, "NETWORK=two")
}

// answerAuthority writes what was asked for, and by whom, and ends.
func answerAuthority(_ context.Context, in *hbone.Incoming) {
	s, err := in.Accept(hbone.Response{})
	if err != nil {
		return
	}
	fmt.Fprintf(s, "%s from %s of network %s", in.Request.Authority, in.Peer.ServiceAccount, in.Request.Header.Network)
	s.CloseWrite()
	io.Copy(io.Discard, s)
}

// TestZtunnelNetworks crosses from one network into another by a tunnel in a
// tunnel, to a workload and to a waypoint.
func TestZtunnelNetworks(t *testing.T) {
	t.Parallel()
	n := newNetworks(t)
	t.Run("workload", n.toWorkload)
	t.Run("waypoint", n.toWaypoint)
	t.Run("refused", n.notAcross)
	t.Run("payload", n.payload)
}

func (n *networks) toWorkload(t *testing.T) {
	for range 3 {
		if from := n.client.exchange(t, netip.MustParseAddr("10.99.0.1"), 80); from != n.gw.IP4.String() {
			t.Errorf("the server saw %s, want the gateway's address %s", from, n.gw.IP4)
		}
	}
	n.gw.mu.Lock()
	callers, header := n.gw.callers, n.gw.headers[0]
	n.gw.mu.Unlock()
	if len(callers) != 3 || callers[0].ServiceAccount != "client" {
		t.Errorf("the gateway was called by %v", callers)
	}
	if header.Network != "" || !strings.Contains(header.Baggage, "service.name=client") || !strings.Contains(header.Forwarded, "host=echo.default") {
		t.Errorf("the outer tunnel's headers: %+v", header)
	}
	// Each side knows the other by what it said, not by the gateway's address.
	n.z1.wantLog(`connection complete.*dst.addr="?` + quote(n.gw.IP4.String()) + `:15008.*dst.hbone_addr="?echo.default.svc.cluster.local:80.*dst.workload="?server.*dst.identity="?spiffe://cluster.local/ns/default/sa/server.*direction="?outbound`)
	n.z2.wantLog(`src.addr="?` + quote(n.gw.IP4.String()) + `.*src.workload="?client.*src.identity="?spiffe://cluster.local/ns/default/sa/client.*dst.service="?echo.*direction="?inbound`)
	if n.z1.metric("istio_tcp_connections_opened_total", `destination_workload="server"`, `destination_principal="spiffe://cluster.local/ns/default/sa/server"`) != 3 {
		t.Error("the client's metrics do not name the server")
	}
}

func (n *networks) toWaypoint(t *testing.T) {
	c := n.client.dial(t, netip.MustParseAddr("10.99.0.3"), 80)
	got, err := io.ReadAll(c)
	if want := "shop.default.svc.cluster.local:80 from client of network one"; string(got) != want || err != nil {
		t.Errorf("the waypoint was asked for %q, %v, want %q", got, err, want)
	}
}

// notAcross holds that a service without identities is not reached, that a far end
// with another identity is not accepted, and that no gateway means no way.
func (n *networks) notAcross(t *testing.T) {
	n.client.wantReset(t, netip.MustParseAddr("10.99.0.2"), 80)
	n.z1.wantLog(`its service declares no identities`)
	n.gw.mu.Lock()
	right := n.gw.to["echo.default.svc.cluster.local:80"]
	n.gw.to["echo.default.svc.cluster.local:80"] = n.gw.to["shop.default.svc.cluster.local:80"]
	n.gw.mu.Unlock()
	n.client.wantReset(t, netip.MustParseAddr("10.99.0.1"), 80)
	n.z1.wantLog(`open inner tunnel.*peer identity not accepted`)
	n.gw.mu.Lock()
	n.gw.to["echo.default.svc.cluster.local:80"] = right
	n.gw.mu.Unlock()
	n.client.exchange(t, netip.MustParseAddr("10.99.0.1"), 80)
}

// payload moves bytes both ways at once, each direction ending on its own, and
// holds that nothing is left open.
func (n *networks) payload(t *testing.T) {
	const size = 8 << 20
	sums := make(chan [2][32]byte, 1)
	n.server.listen(t, 7001, func(c *net.TCPConn) {
		sent, got := pour(t, c, size, 2)
		sums <- [2][32]byte{sent, got}
	})
	fds := n.z1.descriptors()
	c := n.client.dial(t, netip.MustParseAddr("10.99.0.1"), 81)
	sent, got := pour(t, c, size, 1)
	if there := <-sums; sent != there[1] || got != there[0] {
		t.Error("a payload has changed on its way")
	}
	c.Close()
	n.z1.until("descriptors to be given back", func() bool { return n.z1.descriptors() <= fds })
}
