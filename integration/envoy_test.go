package integration

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// CULVERT_ENVOY is the path of an Envoy, to which these tests talk as waypoints and
// gateways are talked to. Without it they are skipped.
const envoyPath = "CULVERT_ENVOY"

// envoy is what an Envoy does in a pod: it ends tunnels on port 15008 and passes
// their bytes on, and opens tunnels for what comes in plain.
type envoy struct {
	terminate map[string]netip.AddrPort // authority of a CONNECT → where its bytes go
	originate map[uint16]tunnel         // port → where to, through a tunnel
}

type tunnel struct {
	to        netip.AddrPort
	authority string
}

// envoy runs an Envoy in the pod, under the pod's identity.
func (p *pod) envoy(t *testing.T, e envoy) {
	t.Helper()
	path := os.Getenv(envoyPath)
	if path == "" {
		t.Skipf("%s is not set", envoyPath)
	}
	dir := t.TempDir()
	p.writeCertificate(t, dir)
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(e.config(dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &runtest.Buffer{}
	cmd := exec.Command(path, "-c", config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.NS.Start(cmd); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log)
		}
	})
	tick, late := time.NewTicker(20*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		c, err := p.NS.Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), mesh.PortHBONE), netns.DialOptions{})
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("Envoy does not listen: %v", err)
		case <-done:
			t.Fatalf("Envoy has ended:\n%s", log)
		}
	}
}

// writeCertificate writes the pod's certificate, key and root.
func (p *pod) writeCertificate(t *testing.T, dir string) {
	t.Helper()
	id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: p.name}
	svid, err := selfsigned.Fixed(selfsigned.WithLog(slog.New(slog.DiscardHandler))).Issue(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(svid.Leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"chain.pem": certs.EncodePEM(svid.Chain...),
		"key.pem":   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"root.pem":  certs.EncodePEM(svid.RootCerts...),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (e envoy) config(dir string) string {
	tls := fmt.Sprintf(`common_tls_context:
            alpn_protocols: [h2]
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: %[1]s/chain.pem}, private_key: {filename: %[1]s/key.pem}}]
            validation_context: {trusted_ca: {filename: %[1]s/root.pem}}`, dir)
	var routes, listeners, clusters strings.Builder
	for authority, to := range e.terminate {
		fmt.Fprintf(&routes, `
              - match: {connect_matcher: {}, headers: [{name: ":authority", string_match: {exact: %[1]q}}]}
                route: {cluster: %[1]q, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}`, authority)
		fmt.Fprintf(&clusters, `
  - name: %q
    type: STATIC
    load_assignment: {cluster_name: %[1]q, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[2]q, port_value: %[3]d}}}}]}]}`, authority, to.Addr(), to.Port())
	}
	for port, tunnel := range e.originate {
		fmt.Fprintf(&listeners, `
  - name: plain-%[1]d
    address: {socket_address: {address: 0.0.0.0, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: tunnel-%[1]d
          tunneling_config: {hostname: %[2]q}`, port, tunnel.authority)
		fmt.Fprintf(&clusters, `
  - name: tunnel-%[1]d
    type: STATIC
    load_assignment: {cluster_name: tunnel-%[1]d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[2]q, port_value: %[3]d}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true}}
    transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          %[4]s`, port, tunnel.to.Addr(), tunnel.to.Port(), tls)
	}
	return `static_resources:
  listeners:` + listeners.String() + `
  - name: hbone
    address: {socket_address: {address: "::", port_value: 15008, ipv4_compat: true}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          ` + tls + `
      filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:` + routes.String() + `
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:` + clusters.String() + "\n"
}

// TestEnvoy holds that our tunnels end at an Envoy that is a waypoint, pass through
// one that is a network gateway, and that one's tunnels end at ours.
func TestEnvoy(t *testing.T) {
	t.Parallel()
	if os.Getenv(envoyPath) == "" {
		t.Skipf("%s is not set", envoyPath)
	}
	n := layNetworks(t)
	program, wp := n.outside("program"), n.outside("envoy")
	program.listen(t, 7000, echo)
	n.workloads = append(n.workloads, fmt.Sprintf(`- uid: Kubernetes//Pod/default/envoy
  name: envoy
  namespace: default
  serviceAccount: envoy
  trustDomain: cluster.local
  network: one
  workloadIps: [%q]
  services: {}
`, wp.IP4))
	n.services = append(n.services, fmt.Sprintf(`- name: fronted
  namespace: default
  hostname: fronted.default.svc.cluster.local
  vips: ["one/10.99.0.9"]
  ports: {80: 7000}
  waypoint: {destination: "one/%s", hboneMtlsPort: 15008}
`, wp.IP4))
	n.policies = nil
	n.allow("only-client", "client", "envoy")
	n.gw.envoy(t, envoy{terminate: n.gw.to})
	wp.envoy(t, envoy{
		terminate: map[string]netip.AddrPort{"10.99.0.9:80": netip.AddrPortFrom(program.IP4, 7000)},
		originate: map[uint16]tunnel{
			7700: {netip.AddrPortFrom(n.server.IP4, mesh.PortHBONE), netip.AddrPortFrom(n.server.IP4, 7000).String()},
			7701: {netip.AddrPortFrom(n.server.IP4, mesh.PortHBONE), netip.AddrPortFrom(n.server.IP4, 7010).String()},
		},
	})
	n.start()

	t.Run("waypoint", func(t *testing.T) {
		for range 3 {
			n.client.exchange(t, netip.MustParseAddr("10.99.0.9"), 80)
		}
		n.client.wantReset(t, netip.MustParseAddr("10.99.0.9"), 81)
	})
	t.Run("gateway", func(t *testing.T) {
		for range 3 {
			n.client.exchange(t, netip.MustParseAddr("10.99.0.1"), 80)
		}
		n.payload(t)
		n.z2.wantLog(`src.workload="?client.*src.identity="?spiffe://cluster.local/ns/default/sa/client.*dst.service="?echo.*direction="?inbound`)
	})
	t.Run("client", func(t *testing.T) {
		for range 3 {
			program.exchange(t, wp.IP4, 7700)
		}
		n.z2.wantLog(`src.identity="?spiffe://cluster.local/ns/default/sa/envoy.*direction="?inbound`)
		const size = 8 << 20
		sums := make(chan [2][32]byte, 1)
		n.server.listen(t, 7010, func(c *net.TCPConn) {
			sent, got := pour(t, c, size, 2)
			sums <- [2][32]byte{sent, got}
		})
		sent, got := pour(t, program.dial(t, wp.IP4, 7701), size, 1)
		if there := <-sums; sent != there[1] || got != there[0] {
			t.Error("a payload has changed on its way")
		}
	})
}
