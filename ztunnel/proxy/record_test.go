package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// logged is a node without sockets that logs into a buffer.
func logged(t *testing.T, filter string) (*Node, *bytes.Buffer) {
	t.Helper()
	levels, err := logging.NewLevels(filter)
	if err != nil {
		t.Fatal(err)
	}
	n, out := quiet(t), new(bytes.Buffer)
	n.Access = accesslog.New(out, logging.Plain, levels)
	n.Log = logging.Scope(slog.New(logging.NewHandler(out, logging.Plain, levels)), "proxy")
	return n, out
}

// TestLines holds the lines of a connection: their levels, their fields, and bytes
// as seen from the proxy's workload: requests out for a client, answers for a server.
func TestLines(t *testing.T) {
	t.Parallel()
	n, out := logged(t, "info,access=debug")
	p := podOf(n, "x")
	next := func() string {
		text := out.String()
		out.Reset()
		_, text, _ = strings.Cut(text, "\t")
		return strings.TrimSpace(text)
	}
	expect := func(what, line string, parts ...string) {
		t.Helper()
		at := 0
		for _, part := range parts {
			i := strings.Index(line[at:], part)
			if i < 0 {
				t.Errorf("%s: no %q, in order, in %s", what, part, line)
				return
			}
			at += i
		}
	}
	r := leave(p)
	r.source(shopClient)
	r.chose(shopClient, toServer)
	expect("opened", next(), "debug\taccess\tconnection opened\t", "src.addr=10.0.0.1:40000", `src.workload="client-1"`, `src.namespace="shop"`,
		`src.identity="spiffe://cluster.local/ns/shop/sa/client"`, "dst.addr=10.0.0.2:15008", `dst.hbone_addr="10.0.0.2:8080"`,
		`dst.service="cart.shop.svc.cluster.local"`, `dst.workload="server-1"`, `dst.namespace="shop"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/server"`, `direction="outbound"`)
	r.bytes.Sent.Store(100)
	r.bytes.Received.Store(2000)
	r.end(nil)
	expect("outbound", next(), "info\taccess\tconnection complete\t", `direction="outbound"`, "bytes_sent=100", "bytes_recv=2000", `duration="`)

	r = p.begin(inbound)
	r.line.Source.Addr, r.line.HBONEAddr = clientAddr, "10.0.0.2:8080"
	r.arrived(shopClient, shopServer, nil, shopClient.Identity(), netip.MustParseAddrPort("10.0.0.2:8080"))
	r.opened()
	next()
	r.bytes.Received.Store(100) // from the stream, which leads back to the client
	r.bytes.Sent.Store(2000)
	r.end(reason.New(reason.PolicyChanged, "relay", "", nil))
	expect("inbound", next(), "error\taccess\tconnection complete\t", "dst.addr=10.0.0.2:8080", `direction="inbound"`, "bytes_sent=2000", "bytes_recv=100", `error="relay: connection closed due to policy change"`)

	r = p.begin(inbound)
	r.plaintext()
	r.line.Source.Addr = clientAddr
	r.arrived(nil, shopServer, nil, mesh.Identity{}, netip.MustParseAddrPort("10.0.0.2:8080"))
	r.opened()
	next()
	r.bytes.Sent.Store(100)
	r.bytes.Received.Store(2000)
	r.end(nil)
	expect("plaintext", next(), "info\taccess\tconnection complete\t", `direction="inbound"`, "bytes_sent=2000", "bytes_recv=100")

	r = leave(p)
	r.source(shopClient)
	r.end(reason.New(reason.SelfCall, "route", "127.0.0.1:15001", nil))
	expect("refused", next(), "warn\taccess\tconnection failed\t", "src.addr=10.0.0.1:40000", "dst.addr=10.96.0.7:80", `direction="outbound"`, "error=")
}

// TestErrorTexts holds the words that people search their logs for.
func TestErrorTexts(t *testing.T) {
	t.Parallel()
	n, out := logged(t, "info")
	p := podOf(n, "db")
	flow := route.Flow{Source: shopClient, Client: clientAddr, Dst: dialled, Rand: func(uint64) uint64 { return 0 }}
	store := n.Mesh.(*workloads.Store)
	store.Apply(workloads.Update{Services: []*mesh.Service{{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop", VIPs: []mesh.NetAddr{{Addr: dialled.Addr()}}, Ports: []mesh.Port{{Service: 80, Target: 8080}},
	}}})
	_, empty := route.Choose(store, flow)
	given, up := context.WithCancel(t.Context())
	up()
	_, unknown := p.workload(given)
	deny := authz.Verdict{Reason: reason.DeniedByPolicy, Policy: mesh.PolicyName{Namespace: "shop", Name: "no"}}.Err()
	for _, c := range []struct {
		err  error
		want string
	}{
		{reason.New(reason.HBONETimeout, "connect", "10.0.0.2:15008", nil), "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"},
		{deny, "connection closed due to policy rejection: explicitly denied by: shop/no"},
		{authz.Verdict{Reason: reason.DeniedByDefault}.Err(), "connection closed due to policy rejection: allow policies exist, but none allowed"},
		{unknown, "failed to fetch information about local workload: db.shop (db)"},
		{empty, "no healthy upstream: 10.96.0.7:80"},
		{&hbone.StatusError{Status: 401, Authority: "10.0.0.2:8080"}, "http status: 401"},
		{reason.New(reason.PolicyChanged, "relay", "", deny), "connection closed due to policy change"},
	} {
		out.Reset()
		leave(p).end(c.err)
		if !strings.Contains(out.String(), c.want) {
			t.Errorf("no %q in %s", c.want, out)
		}
	}
}

// TestPolicyLines: what policies decide is told at debug, or at info when
// AUTHZ_POLICY_INFO_LOGGING asks for it; dry-run matches too.
func TestPolicyLines(t *testing.T) {
	t.Parallel()
	c := authz.Connection{Source: clientAddr.Addr(), Destination: netip.MustParseAddrPort("10.0.0.2:8080"), Identity: shopClient.Identity()}
	v := authz.Verdict{Reason: reason.DeniedByPolicy, Policy: mesh.PolicyName{Namespace: "shop", Name: "no"}, DryRun: []mesh.PolicyName{{Namespace: "shop", Name: "try"}}}
	for _, asked := range []bool{false, true} {
		n, out := logged(t, "info")
		n.Settings.LogPolicy = asked
		podOf(n, "db").logVerdict(v, c)
		for _, want := range []string{
			"info\tproxy\tdry-run policy matches\tpolicy=shop/try src.addr=10.0.0.1 src.identity=spiffe://cluster.local/ns/shop/sa/client dst.addr=10.0.0.2:8080",
			"info\tproxy\tpolicy denies\tpolicy=shop/no reason=\"explicitly denied by policy\"",
		} {
			if strings.Contains(out.String(), want) != asked {
				t.Errorf("asked %v: %q in\n%s", asked, want, out)
			}
		}
	}
}

// TestWhoTheSourceIs: what discovery knows of an address counts before what the
// client's proxy says, and the principal is only ever the one that TLS proved.
func TestWhoTheSourceIs(t *testing.T) {
	t.Parallel()
	n := quiet(t)
	n.Mesh.(*workloads.Store).Apply(workloads.Update{Workloads: []*mesh.Workload{{
		UID: "c", Name: "client-1", Namespace: "shop", WorkloadName: "client", ServiceAccount: "client", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{clientAddr.Addr()},
	}}})
	p := podOf(n, "server")
	told := hbone.FormatBaggage(&mesh.Workload{Namespace: "evil", WorkloadName: "liar", Cluster: "other"})
	proved := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "proved"}
	for _, c := range []struct {
		from, network, namespace, workload string
	}{
		{"10.0.0.1:4000", "", "shop", "client"},
		{"10.0.0.99:4000", "", "evil", "liar"},
		{"10.0.0.1:4000", "elsewhere", "evil", "liar"}, // its addresses mean something else there
	} {
		r := p.begin(inbound)
		in := &hbone.Incoming{Peer: proved, Remote: netip.MustParseAddrPort(c.from)}
		in.Request.Header.Baggage, in.Request.Header.Network = told, c.network
		r.line.Source.Addr = in.Remote
		p.describe(r, shopServer, in, route.Delivery{Policy: netip.MustParseAddrPort("10.0.0.2:8080")})
		r.end(nil)
		if w := r.flow.Source; w == nil || w.Namespace != c.namespace || w.WorkloadName != c.workload || r.flow.SourceIdentity != proved || !r.flow.MutualTLS {
			t.Errorf("%+v: %+v", c, r.flow)
		}
	}
}
