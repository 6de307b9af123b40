package proxy

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// names answers what is in it and fails otherwise.
type names map[string][]netip.Addr

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if ips, ok := n[host]; ok {
		return ips, nil
	}
	return nil, errors.New("no such host")
}

// TestHostname holds how a workload that is known by its hostname is reached: at an
// address of the dialled one's family, which is the authority too unless something
// else was asked for, and counted for its client.
func TestHostname(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	registry := prometheus.NewRegistry()
	p := &Pod{node: &Node{
		Resolver: names{"both": {netip.MustParseAddr("::ffff:192.0.2.1"), six}, "four": {four}},
		Lookups:  metrics.NewOnDemandDNS(registry),
	}}
	flow := &route.Flow{
		Source: &mesh.Workload{WorkloadName: "client", Namespace: "shop", TrustDomain: "cluster.local", ServiceAccount: "client"},
		Dst:    netip.MustParseAddrPort("240.240.0.1:443"),
	}
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }
	for _, c := range []struct {
		what         string
		r            route.Route
		dst          string
		next, target string
	}{
		{"plain", route.Route{Hostname: "both", Next: port(8443), Target: port(8443)}, "240.240.0.1:443", "192.0.2.1:8443", "192.0.2.1:8443"},
		{"IPv6", route.Route{Hostname: "both", Next: port(8443), Target: port(8443)}, "[2001:2::1]:443", "[2001:db8::1]:8443", "[2001:db8::1]:8443"},
		{"tunnel", route.Route{Kind: route.Tunnel, Hostname: "four", Next: port(15008), Target: port(80)}, "240.240.0.1:80", "192.0.2.1:15008", "192.0.2.1:80"},
		{"waypoint", route.Route{Kind: route.Tunnel, Hostname: "four", Next: port(15008), Target: flow.Dst}, "240.240.0.1:443", "192.0.2.1:15008", "240.240.0.1:443"},
		{"gateway", route.Route{Kind: route.DoubleTunnel, Hostname: "four", Host: "svc.example", Next: port(15008), Target: port(443)},
			"240.240.0.1:443", "192.0.2.1:15008", "svc.example:443"},
	} {
		f := *flow
		f.Dst = netip.MustParseAddrPort(c.dst)
		if err := p.resolve(t.Context(), &f, &c.r); err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if c.r.Next.String() != c.next || c.r.Authority() != c.target {
			t.Errorf("%s: dial %s for %s, want %s for %s", c.what, c.r.Next, c.r.Authority(), c.next, c.target)
		}
	}
	f := *flow
	for host, dst := range map[string]string{"unknown": "240.240.0.1:443", "four": "[2001:2::1]:443"} {
		f.Dst = netip.MustParseAddrPort(dst)
		if err := p.resolve(t.Context(), &f, &route.Route{Hostname: host, Next: port(80), Target: port(80)}); reason.Of(err) != reason.NoHealthyUpstream {
			t.Errorf("%s: %v", host, err)
		}
	}
	want := `istio_on_demand_dns_total{hostname="both",source_app="unknown",source_canonical_revision="unknown",source_canonical_service="unknown",source_cluster="unknown",source_principal="spiffe://cluster.local/ns/shop/sa/client",source_version="unknown",source_workload="client",source_workload_namespace="shop"} 2`
	page := httptest.NewRecorder()
	metrics.Handler(registry).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	if text := page.Body.String(); !strings.Contains(text, want) {
		t.Errorf("no %s in\n%s", want, text)
	}
}
