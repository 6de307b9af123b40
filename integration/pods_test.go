package integration

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// TestZtunnelFamilies carries connections between pods that have IPv4, IPv6, both,
// and no ::1, by address and by services of either family.
func TestZtunnelFamilies(t *testing.T) {
	t.Parallel()
	f := newField(t)
	four, six, dual, bare := f.outside("four"), f.outside("six"), f.outside("dual"), f.outside("bare")
	four.WithoutIPv6(t)
	six.WithoutIPv4(t)
	bare.WithoutLoopback6(t)
	pods := []*pod{four, six, dual, bare}
	for i, p := range pods {
		p.node = fmt.Sprintf("node-%d", 1+i%2)
		f.enrol(p, fmt.Sprintf(`services: {default/%s.default.svc.cluster.local: {80: 7000}}`, p.name))
		f.services = append(f.services, fmt.Sprintf(`- name: %s
  namespace: default
  hostname: %[1]s.default.svc.cluster.local
  vips: ["/10.99.0.%[2]d", "/fd99::%[2]d"]
  ports: {80: 7000}
`, p.name, i+1))
	}
	stranger := f.outside("stranger")
	f.ztunnel("node-1", f.agent("node-1", four, dual), nil)
	f.ztunnel("node-2", f.agent("node-2", six, bare), nil)
	for _, p := range pods {
		p.listen(t, 7000, echo)
	}
	for _, from := range append(pods, stranger) {
		for i, to := range pods {
			for _, ip := range []netip.Addr{to.IP4, to.IP6} {
				if ip.IsValid() && from.calls(ip) {
					from.exchange(t, ip, 7000)
				}
			}
			vip4, vip6 := netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd99::%d", i+1))
			for _, vip := range []netip.Addr{vip4, vip6} {
				if from != stranger && from.calls(vip) && (from.has(to.IP4) || from.has(to.IP6)) {
					from.exchange(t, vip, 80)
				}
			}
		}
	}
}

// has reports whether the pod has an address of a's family.
func (p *pod) has(a netip.Addr) bool {
	return a.Is4() && p.IP4.IsValid() || a.Is6() && p.IP6.IsValid()
}

// calls reports whether the pod's programs can call an address. In a pod whose
// loopback has no IPv6 the kernel drops what is redirected there.
func (p *pod) calls(a netip.Addr) bool { return p.has(a) && (a.Is4() || p.name != "bare") }

// TestZtunnelPods is what real pods meet beside the ordinary.
func TestZtunnelPods(t *testing.T) {
	t.Parallel()
	f := newField(t)
	p := &podsField{field: f, stranger: f.outside("stranger"), hole: f.outside("hole"), wp: f.outside("wp")}
	p.client = f.pod("client", "node-1")
	p.twin = f.pod("twin", "node-1", `services: {default/holed.default.svc.cluster.local: {80: 7000}}`)
	p.server = f.pod("server", "node-2", fmt.Sprintf(`waypoint: {destination: "/%s", hboneMtlsPort: 15008}`, p.wp.IP4),
		`services: {default/holed.default.svc.cluster.local: {80: 7000}, default/guarded.default.svc.cluster.local: {80: 7000}}`)
	entry := func(name, ip, more string) {
		f.workloads = append(f.workloads, fmt.Sprintf(`- uid: Kubernetes//Pod/default/%s
  name: %[1]s
  namespace: default
  serviceAccount: %[1]s
  trustDomain: cluster.local
  workloadIps: [%[2]q]
%[3]s`, name, ip, more))
	}
	entry("wp", p.wp.IP4.String(), "  services: {}\n")
	entry("hole", p.hole.IP4.String(), "  services: {default/holed.default.svc.cluster.local: {80: 7000}}\n")
	entry("apiserver", p.stranger.IP4.String(), "  networkMode: HostNetwork\n  services: {default/kubernetes.default.svc.cluster.local: {443: 7000}}\n")
	f.service("holed", "10.99.0.1", "{80: 7000}")
	f.service("kubernetes", "10.99.0.2", "{443: 7000}")
	f.service("nothing", "10.99.0.3", "{80: 7000}")
	f.services = append(f.services, fmt.Sprintf(`- name: guarded
  namespace: default
  hostname: guarded.default.svc.cluster.local
  vips: ["/10.99.0.4"]
  ports: {80: 7000}
  waypoint: {destination: "/%s", hboneMtlsPort: 15008}
`, p.wp.IP4))
	p.wp.terminate(t, answerAuthority)
	for _, pod := range []*pod{p.twin, p.server, p.stranger, p.client} {
		pod.listen(t, 7000, echo)
	}
	p.z1 = f.ztunnel("node-1", f.agent("node-1", p.client, p.twin), nil, "RUST_LOG=info,proxy=debug")
	p.z2 = f.ztunnel("node-2", f.agent("node-2", p.server), nil)

	t.Run("host network", p.hostNetwork)
	t.Run("itself", p.itself)
	t.Run("ports in use elsewhere", p.portsInUse)
	t.Run("waypoints", p.waypoints)
	t.Run("without endpoints", p.noEndpoints)
	t.Run("black hole", p.blackHole)
	t.Run("jumbo", p.jumbo)
}

type podsField struct {
	*field
	client, twin, server, stranger, hole, wp *pod
	z1, z2                                   *ztunnel
}

// hostNetwork reaches the API server as a service and by its own address.
func (p *podsField) hostNetwork(t *testing.T) {
	p.client.exchange(t, netip.MustParseAddr("10.99.0.2"), 443)
	p.z1.wantLog(`dst.service="?kubernetes.default.*dst.workload="?apiserver`)
	p.client.exchange(t, p.stranger.IP4, 7000)
}

// itself: a pod that dials its own address is not captured, on loopback neither.
func (p *podsField) itself(t *testing.T) {
	for _, ip := range []netip.Addr{p.client.IP4, p.client.IP6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		p.client.exchange(t, ip, 7000)
	}
}

// portsInUse: a program may listen on ports that a ztunnel has in its own namespace,
// and several pods on the same; only the captured ones are the mesh's.
func (p *podsField) portsInUse(t *testing.T) {
	for _, port := range []uint16{mesh.PortAdmin, mesh.PortMetrics, mesh.PortReady, mesh.PortXDS} {
		p.twin.listen(t, port, echo)
		p.client.exchange(t, p.twin.IP4, port)
	}
	// The same client port to two servers, at the same time.
	var open []*net.TCPConn
	for _, to := range []netip.Addr{p.twin.IP4, p.stranger.IP4} {
		c, err := p.client.NS.Dial(t.Context(), netip.AddrPortFrom(to, 7000), netns.DialOptions{Source: p.client.IP4})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	for _, c := range open {
		io.WriteString(c, "x")
		c.CloseWrite()
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
	}
}

// waypoints: the service's takes what is for the service, the workload's what is
// for the workload's address, each with what was dialled as the authority.
func (p *podsField) waypoints(t *testing.T) {
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort("10.99.0.4:80"), netip.AddrPortFrom(p.server.IP4, 7000), netip.AddrPortFrom(p.server.IP6, 7000)} {
		got, err := io.ReadAll(p.client.dial(t, to.Addr(), to.Port()))
		if want := to.String() + " from client of network "; string(got) != want || err != nil {
			t.Errorf("the waypoint was asked for %q, %v, want %q", got, err, want)
		}
	}
}

func (p *podsField) noEndpoints(t *testing.T) {
	p.client.wantReset(t, netip.MustParseAddr("10.99.0.3"), 80)
	p.z1.wantLog(`no healthy upstream: 10\.99\.0\.3:80`)
}

// blackHole: of three endpoints one answers nothing. Every connection is served,
// and after the first that met it the others keep clear of it.
func (p *podsField) blackHole(t *testing.T) {
	l, err := p.hole.NS.Listen(t.Context(), netip.AddrPortFrom(p.hole.IP4, 7000), netns.ListenOptions{Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 { // a queue of one takes two; what comes then is dropped
		c, err := p.stranger.NS.Dial(t.Context(), netip.AddrPortFrom(p.hole.IP4, 7000), netns.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range 30 {
		p.client.exchange(t, netip.MustParseAddr("10.99.0.1"), 80)
	}
	if n := p.z1.metric("istio_tcp_connections_opened_total", `reporter="source"`, `destination_service="holed.default.svc.cluster.local"`); n != 30 {
		t.Errorf("30 connections are counted as %v", n)
	}
	if n := strings.Count(p.z1.log.String(), "trying another endpoint"); n > 3 {
		t.Errorf("%d of 30 connections met the endpoint that answers nothing", n)
	}
}

// jumbo moves bytes both ways in packets of 9000 bytes.
func (p *podsField) jumbo(t *testing.T) {
	p.node.MTU(t, 9000, p.client.Pod, p.twin.Pod)
	const size = 16 << 20
	sums := make(chan [2][32]byte, 1)
	p.twin.listen(t, 7009, func(c *net.TCPConn) {
		sent, got := pour(t, c, size, 2)
		sums <- [2][32]byte{sent, got}
	})
	sent, got := pour(t, p.client.dial(t, p.twin.IP4, 7009), size, 1)
	if there := <-sums; sent != there[1] || got != there[0] {
		t.Error("a payload has changed on its way")
	}
}
