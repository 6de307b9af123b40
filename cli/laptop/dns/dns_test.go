package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func testZone() *Zone {
	addr := netip.MustParseAddr
	return NewZone("cluster.local", []Service{
		{Namespace: "shop", Name: "cart", Addrs: []netip.Addr{addr("10.96.1.0"), addr("fd00:96::100")},
			Ports: []Port{{Name: "http", Protocol: "tcp", Number: 80}, {Protocol: "tcp", Number: 81}}},
		{Namespace: "shop", Name: "db", Ports: []Port{{Name: "sql", Protocol: "tcp", Number: 5432}},
			Endpoints: []Endpoint{
				{Hostname: "pod-0", Addrs: []netip.Addr{addr("10.244.1.5"), addr("fd00:244:1::5")}},
				{Addrs: []netip.Addr{addr("10.244.2.6")}},
			}},
		{Namespace: "shop", Name: "empty"},
	})
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"cart.shop.svc.cluster.local.", dns.TypeA, 0, []string{"10.96.1.0"}},
		{"CART.shop.svc.cluster.LOCAL.", dns.TypeA, 0, []string{"10.96.1.0"}},
		{"cart.shop.svc.cluster.local.", dns.TypeAAAA, 0, []string{"fd00:96::100"}},
		{"cart.shop.svc.cluster.local.", dns.TypeMX, 0, nil},
		{"db.shop.svc.cluster.local.", dns.TypeA, 0, []string{"10.244.1.5", "10.244.2.6"}},
		{"pod-0.db.shop.svc.cluster.local.", dns.TypeAAAA, 0, []string{"fd00:244:1::5"}},
		{"10-244-2-6.db.shop.svc.cluster.local.", dns.TypeA, 0, []string{"10.244.2.6"}},
		{"empty.shop.svc.cluster.local.", dns.TypeA, 0, nil},
		{"_http._tcp.cart.shop.svc.cluster.local.", dns.TypeSRV, 0, []string{"0 100 80 cart.shop.svc.cluster.local."}},
		{"_sql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV, 0,
			[]string{"0 50 5432 10-244-2-6.db.shop.svc.cluster.local.", "0 50 5432 pod-0.db.shop.svc.cluster.local."}},
		{"0.1.96.10.in-addr.arpa.", dns.TypePTR, 0, []string{"cart.shop.svc.cluster.local."}},
		{"10-244-9-9.shop.pod.cluster.local.", dns.TypeA, 0, []string{"10.244.9.9"}},
		{"shop.svc.cluster.local.", dns.TypeA, 0, nil},
		{"absent.shop.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"example.com.", dns.TypeA, dns.RcodeNameError, nil},
		{"cart.shop.svc.cluster.local.example.com.", dns.TypeA, dns.RcodeNameError, nil},
	} {
		m := testZone().Answer(new(dns.Msg).SetQuestion(c.name, c.qtype))
		if m.Rcode != c.rcode {
			t.Errorf("%s %s: %s, want %s", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[m.Rcode], dns.RcodeToString[c.rcode])
		}
		if got := data(m.Answer); !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
	}
}

func data(rrs []dns.RR) (out []string) {
	for _, rr := range rrs {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	return out
}

// TestServe: over UDP and TCP, with a new zone in between, and an end.
func TestServe(t *testing.T) {
	t.Parallel()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(NewZone("cluster.local", nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	q := new(dns.Msg).SetQuestion("cart.shop.svc.cluster.local.", dns.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		m := exchange(t, network, udp.LocalAddr().String(), q)
		if m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %s from an empty zone, want NXDOMAIN", network, dns.RcodeToString[m.Rcode])
		}
	}
	s.SetZone(testZone())
	if m := exchange(t, "udp", udp.LocalAddr().String(), q); len(m.Answer) != 1 {
		t.Errorf("after SetZone: %v, want one answer", m.Answer)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func exchange(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	m, _, err := (&dns.Client{Net: network}).Exchange(q, addr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func FuzzAnswer(f *testing.F) {
	f.Add("cart.shop.svc.cluster.local.", dns.TypeA)
	f.Add("1-2-3-4.shop.pod.cluster.local.", dns.TypeAAAA)
	z := testZone()
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		q := new(dns.Msg)
		q.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: dns.ClassINET}}
		if m := z.Answer(q); m.Rcode == dns.RcodeNameError && len(m.Answer) > 0 {
			t.Errorf("%q: NXDOMAIN with answers", name)
		}
	})
}
