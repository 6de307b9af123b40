package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// quiet is a node without sockets.
func quiet(t testing.TB) *Node {
	levels, err := logging.NewLevels("off")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{
		Mesh:    workloads.New(),
		Metrics: metrics.NewTCP(prometheus.NewRegistry(), metrics.TCPConfig{}),
		Access:  accesslog.New(io.Discard, logging.Plain, levels),
		Log:     slog.New(slog.DiscardHandler),
	}
	NewMetrics(prometheus.NewRegistry(), n)
	return n
}

func podOf(n *Node, name string) *Pod {
	return &Pod{node: n, info: mesh.PodInfo{Name: name, Namespace: "shop", ServiceAccount: name}}
}

var (
	clientAddr = netip.MustParseAddrPort("10.0.0.1:40000")
	dialled    = netip.MustParseAddrPort("10.96.0.7:80")
	shopClient = &mesh.Workload{UID: "c", Name: "client-1", Namespace: "shop", ServiceAccount: "client", TrustDomain: "cluster.local"}
	shopServer = &mesh.Workload{UID: "s", Name: "server-1", Namespace: "shop", ServiceAccount: "server", TrustDomain: "cluster.local"}
	toServer   = route.Route{
		Kind: route.Tunnel, Next: netip.MustParseAddrPort("10.0.0.2:15008"), Target: netip.MustParseAddrPort("10.0.0.2:8080"),
		Expect: []mesh.Identity{shopServer.Identity()}, Workload: shopServer,
		Service: &mesh.Service{Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"},
	}
)

// leave begins an outbound connection of a pod, up to where it is captured.
func leave(p *Pod) *record {
	r := p.begin(outbound)
	r.line.Source.Addr, r.line.Destination.Addr = clientAddr, dialled
	return r
}

func TestFailureTellsHowFarItGot(t *testing.T) {
	denied := authz.Verdict{Reason: reason.DeniedByPolicy, Policy: mesh.PolicyName{Namespace: "shop", Name: "no"}}.Err()
	for _, c := range []struct {
		what  string
		run   func(p *Pod) error
		check func(f Failure) bool
	}{
		{"its own workload never came", func(p *Pod) error {
			r := leave(p)
			time.Sleep(5 * time.Second)
			r.source(nil)
			err := reason.Newf(reason.UnknownSource, "serve", "", "client.shop (client)")
			r.end(err)
			return err
		}, func(f Failure) bool {
			return f.Stage == "learn" && f.Hop == "local" && f.Dialled == dialled.String() && f.Timings.Learn == 5000 && f.Timings.Total == 5000 && f.Timings.Choose == 0
		}},
		{"no endpoint", func(p *Pod) error {
			r := leave(p)
			time.Sleep(20 * time.Millisecond)
			r.source(shopClient)
			err := reason.Newf(reason.NoHealthyUpstream, "route", "", "%s", dialled)
			r.end(err)
			return err
		}, func(f Failure) bool {
			return f.Stage == "choose" && f.Hop == "local" && f.Source.Workload == "client-1" && f.Timings.Learn == 20 && f.Reason == "no healthy upstream"
		}},
		{"the peer does not answer", func(p *Pod) error {
			r := leave(p)
			r.source(shopClient)
			r.chose(shopClient, toServer)
			time.Sleep(10 * time.Second)
			err := reason.New(reason.HBONETimeout, "connect", toServer.Next.String(), nil)
			r.end(err)
			return err
		}, func(f Failure) bool {
			return f.Stage == "dial" && f.Hop == "workload" && f.Flag == "NETWORK_POLICY" && f.Timings.Dial == 10000 &&
				f.HBONE == "10.0.0.2:8080" && f.Destination.Addr == "10.0.0.2:15008" && f.Dialled == dialled.String() && f.Service == "cart.shop.svc.cluster.local"
		}},
		{"the waypoint is somebody else", func(p *Pod) error {
			r := leave(p)
			r.source(shopClient)
			to := toServer
			to.Waypoint = true
			r.chose(shopClient, to)
			r.timing = hbone.Timing{Dial: 2 * time.Millisecond, TLS: 3 * time.Millisecond}
			err := reason.New(reason.IdentityMismatch, "open tunnel", "", nil)
			r.end(err)
			return err
		}, func(f Failure) bool {
			return f.Stage == "handshake" && f.Hop == "waypoint" && f.Timings.Dial == 2 && f.Timings.TLS == 3 && f.Timings.Connect == 0
		}},
		{"a policy comes when bytes flow", func(p *Pod) error {
			r := p.begin(inbound)
			r.line.Source.Addr, r.line.HBONEAddr = clientAddr, "10.0.0.2:8080"
			r.arrived(shopClient, shopServer, nil, shopClient.Identity(), netip.MustParseAddrPort("10.0.0.2:8080"))
			r.opened()
			r.reach(stageOpen)
			r.reach(stageRelay)
			r.bytes.Received.Store(7)
			time.Sleep(time.Second)
			err := reason.New(reason.PolicyChanged, "relay", "", denied)
			r.end(err)
			return err
		}, func(f Failure) bool {
			return f.Stage == "relay" && f.Hop == "application" && f.Policy == "shop/no" && f.Timings.Relay == 1000 && f.BytesRecv == 7 &&
				f.Dialled == "10.0.0.2:8080" && f.Source.Identity == "spiffe://cluster.local/ns/shop/sa/client" && f.Direction == "inbound"
		}},
		{"a policy refuses", func(p *Pod) error {
			r := p.begin(inbound)
			r.line.Source.Addr, r.line.HBONEAddr = clientAddr, "10.0.0.2:8080"
			r.arrived(shopClient, shopServer, nil, shopClient.Identity(), netip.MustParseAddrPort("10.0.0.2:8080"))
			r.end(denied)
			return denied
		}, func(f Failure) bool { return f.Stage == "authorize" && f.Policy == "shop/no" && f.Flag == "DENY" }},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := quiet(t)
				err := c.run(podOf(n, "x"))
				all := n.Failures(nil)
				if len(all) != 1 || !c.check(all[0]) || all[0].Error != err.Error() || all[0].Pod != "shop/x" || !all[0].Time.Equal(time.Now()) {
					t.Errorf("%+v", all)
				}
			})
		})
	}
}

// TestFlightsAreBounded: by pod and by node, in number and in the length of what
// peers say.
func TestFlightsAreBounded(t *testing.T) {
	t.Parallel()
	n := quiet(t)
	for i := range 100 {
		r := leave(podOf(n, "noisy"))
		r.line.HBONEAddr = strings.Repeat("ü", 4000)
		r.end(fmt.Errorf("%d %s", i, strings.Repeat("x", 4000)))
	}
	all := n.Failures(nil)
	if len(all) != failuresPerPod || !strings.HasPrefix(all[0].Error, "68 ") || !strings.HasPrefix(all[len(all)-1].Error, "99 ") {
		t.Errorf("%d failures, from %.10q to %.10q", len(all), all[0].Error, all[len(all)-1].Error)
	}
	if f := all[0]; len(f.Error) > maxFailureText+10 || len(f.HBONE) > maxFailureText+10 {
		t.Errorf("texts of %d and %d bytes", len(f.Error), len(f.HBONE))
	}
	for i := range 3 * failuresPerNode {
		leave(podOf(n, fmt.Sprint("p", i%300))).end(errors.New("no"))
	}
	if got := len(n.Failures(nil)); got != failuresPerNode {
		t.Errorf("%d failures of the node, want %d", got, failuresPerNode)
	}
	count := 0
	for _, list := range n.flights.pods {
		count += len(list)
	}
	if count != failuresPerNode {
		t.Errorf("%d failures by pod", count)
	}
	if got := n.Failures(func(f *Failure) bool { return f.Pod == "shop/noisy" }); len(got) != 0 {
		t.Errorf("%d of the oldest are still there", len(got))
	}
}

// TestSuccessCostsNoRecorder holds that a connection that ends well allocates its
// record and its place among the live ones, and nothing for the recorder.
func TestSuccessCostsNoRecorder(t *testing.T) {
	p := podOf(quiet(t), "x")
	carry := func() {
		r := leave(p)
		r.source(shopClient)
		r.chose(shopClient, toServer)
		r.reach(stageRelay)
		r.end(nil)
	}
	carry()
	if n := testing.AllocsPerRun(200, carry); n > 3 { // the record, the counted connection, the authority's text
		t.Errorf("%v allocations", n)
	}
	if got := p.node.Failures(nil); len(got) != 0 {
		t.Errorf("%d failures", len(got))
	}
}

func BenchmarkRecord(b *testing.B) {
	p := podOf(quiet(b), "x")
	for name, err := range map[string]error{"success": nil, "failure": reason.New(reason.ConnectRefused, "connect", "10.0.0.2:15008", nil)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := leave(p)
				r.source(shopClient)
				r.chose(shopClient, toServer)
				r.reach(stageRelay)
				r.end(err)
			}
		})
	}
}

// TestOwnSeries: failures by reason, dry-run matches, queueing, and what is open.
func TestOwnSeries(t *testing.T) {
	t.Parallel()
	n := quiet(t)
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg, n)
	n.Budget = hbone.NewBudget(1000)
	n.Budget.Take(300)
	leave(podOf(n, "x")).end(reason.New(reason.HBONETimeout, "connect", "", nil))
	open := leave(podOf(n, "x"))
	open.source(shopClient)
	open.chose(shopClient, toServer)
	open.bytes.Sent.Store(5)
	tried := mesh.PolicyName{Namespace: "shop", Name: "try"}
	n.Mesh.(*workloads.Store).Apply(workloads.Update{Policies: []*mesh.Policy{{Name: tried, DryRun: true}}})
	m.matchedDry([]mesh.PolicyName{tried, {Namespace: "shop", Name: "gone"}})
	m.acceptFailed(clientAddr, reason.New(reason.TLSFailure, "accept", "", nil))
	m.queued(0)
	m.queued(300 * time.Microsecond)
	m.queued(time.Minute)
	text := gather(t, reg)
	for _, want := range []string{
		`culvert_ztunnel_connections_failed_total{reason="connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",reporter="source"} 1`,
		`culvert_ztunnel_connections_open{reporter="source"} 1`, `culvert_ztunnel_connections_open_bytes{direction="request",reporter="source"} 5`,
		`culvert_ztunnel_policy_dry_run_matches_total{namespace="shop",policy="try"} 1`,
		`culvert_ztunnel_handshake_failures_total{reason="TLS handshake failed",role="server"} 1`,
		`culvert_ztunnel_tunnel_queue_seconds_bucket{le="0.000256"} 0`, `culvert_ztunnel_tunnel_queue_seconds_bucket{le="0.001024"} 1`,
		`culvert_ztunnel_tunnel_queue_seconds_count 2`, `culvert_ztunnel_buffer_bytes 300`, `culvert_ztunnel_buffer_limit_bytes 1000`,
		`culvert_ztunnel_tunnels{role="client"} 0`, `culvert_ztunnel_tunnel_streams_max{role="server"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, `policy="gone"`) {
		t.Error("a policy that is gone still has a series")
	}
	for i := range 2 * maxDryRun {
		m.matchedDry([]mesh.PolicyName{{Namespace: "n", Name: fmt.Sprint(i)}})
	}
	if len(m.dryRun) > maxDryRun+1 {
		t.Errorf("%d policies counted", len(m.dryRun))
	}
}

// TestTunnelsAreCounted holds that tunnels show while they are open and are gone after.
func TestTunnelsAreCounted(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	db := ca.server(serverURI)
	inside, leave := make(chan struct{}), make(chan struct{})
	node, server, client := servedNode(t, certs.Fixed{db.ID: db}, func(c io.Writer) { close(inside); <-leave; io.WriteString(c, "ok") })
	done := make(chan error, 1)
	go func() {
		_, err := ask(t, client, server, ca.svid(clientURI, time.Hour))
		done <- err
	}()
	<-inside
	all := node.Tunnels()
	if len(all) != 1 || all[0].Role != "server" || all[0].Streams != 1 || all[0].Peer != clientURI || all[0].Pod != "shop/db-0" {
		t.Errorf("tunnels %+v", all)
	}
	if got := node.tunnels()["server"]; got != (tunnelCount{1, 1, 1}) {
		t.Errorf("counted %+v", got)
	}
	open := node.running()[0].Connections()
	if len(open.Outbound) != 0 || len(open.Inbound) != 1 || open.Inbound[0].Protocol != "HBONE" ||
		open.Inbound[0].ActualDst != netip.AddrPortFrom(server, 5432).String() || open.Inbound[0].OriginalDst != netip.AddrPortFrom(server, mesh.PortHBONE).String() {
		t.Errorf("connections %+v", open)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	hbonetest.Until(t, "the tunnel to be gone", func() bool { return len(node.Tunnels()) == 0 })
	if len(node.Failures(nil)) != 0 {
		t.Errorf("failures %+v", node.Failures(nil))
	}
	if _, err := ask(t, client, server, ca.svid(clientURI, -time.Minute)); err == nil {
		t.Fatal("an expired certificate was let in")
	}
	hbonetest.Until(t, "the refusal to be recorded", func() bool { return len(node.Failures(nil)) == 1 })
	if f := node.Failures(nil)[0]; f.Hop != "tunnel" || f.Stage != "handshake" || f.Reason != "TLS handshake failed" {
		t.Errorf("%+v", f)
	}
}

// servedNode is servedPod that returns the node too.
func servedNode(t *testing.T, source certs.Source, serve func(io.Writer)) (*Node, netip.Addr, *netns.NS) {
	t.Helper()
	pod, client := netnstest.Pair(t)
	node := newNode(t, dbStore(nil), source)
	dup, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	start(t, node.NewPod("uid", dbInfo, dup))
	program(t, pod, func(c net.Conn) { serve(c) })
	return node, netnstest.PairA4.Addr(), client
}

func gather(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	rec := httptest.NewRecorder()
	metrics.Handler(reg).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}

// TestHandshakeFailuresAreCounted: of tunnels that come and of tunnels that are made.
func TestHandshakeFailuresAreCounted(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	db := ca.server(serverURI)
	pod, outside := netnstest.Pair(t)
	node := newNode(t, dbStore(nil), certs.Fixed{db.ID: db})
	reg := prometheus.NewRegistry()
	NewMetrics(reg, node)
	dup, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	p := node.NewPod("uid", dbInfo, dup)
	start(t, p)
	if _, err := ask(t, outside, netnstest.PairA4.Addr(), ca.svid(clientURI, -time.Minute)); err == nil {
		t.Error("an expired certificate was let in")
	}
	to := hbone.Peer{Source: db.ID, Expect: []mesh.Identity{db.ID}, Addr: netip.AddrPortFrom(netnstest.PairB4.Addr(), mesh.PortHBONE)}
	took := new(hbone.Timing)
	if _, _, err := p.pool.Open(t.Context(), to, hbone.Request{Authority: "10.0.0.9:80", Timing: took}); reason.Of(err) != reason.ConnectRefused {
		t.Errorf("nobody listens there: %v", err)
	}
	if took.Dial == 0 || took.TLS != 0 || took.Connect != 0 || took.Reused {
		t.Errorf("timing %+v", took)
	}
	var text string
	hbonetest.Until(t, "both to be counted", func() bool {
		text = gather(t, reg)
		return strings.Contains(text, `culvert_ztunnel_handshake_failures_total{reason="TLS handshake failed",role="server"} 1`) &&
			strings.Contains(text, `culvert_ztunnel_handshake_failures_total{reason="connection refused",role="client"} 1`)
	})
}
