package redirect

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// routing counts our ip rules and routes of one family in the namespace.
func routing(t *testing.T, ns *netns.NS, family int) (rules, routes int) {
	t.Helper()
	err := ns.Do(func() error {
		all, err := netlink.RuleList(family)
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Table == RouteTable && r.Priority == RulePriority && r.Mark == mesh.MarkInbound && r.Mask != nil && *r.Mask == mesh.MarkMask {
				rules++
			}
		}
		found, err := netlink.RouteListFiltered(family, &netlink.Route{Table: RouteTable}, netlink.RT_FILTER_TABLE)
		routes = len(found)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rules, routes
}

func TestRoutingComesAndGoes(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	for range 2 {
		for range 2 {
			apply(t, ns, Pod(Options{IPv6: true}))
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if rules, routes := routing(t, ns, family); rules != 1 || routes != 1 {
				t.Errorf("family %d: %d rules, %d routes, want one each", family, rules, routes)
			}
		}
		if got := sysctl(t, ns, "net/ipv4/tcp_migrate_req"); got != "1" {
			t.Errorf("tcp_migrate_req is %q", got)
		}
		if err := Remove(ns); err != nil {
			t.Fatal(err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if rules, routes := routing(t, ns, family); rules != 0 || routes != 0 {
				t.Errorf("family %d after removal: %d rules, %d routes", family, rules, routes)
			}
		}
	}
}

func sysctl(t *testing.T, ns *netns.NS, name string) string {
	t.Helper()
	var raw []byte
	err := ns.Do(func() (err error) {
		raw, err = os.ReadFile("/proc/sys/" + name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// A pod whose IPv6 is switched off is captured all the same.
func TestWithoutIPv6(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	for _, where := range []string{"all", "lo"} {
		if err := ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+where+"/disable_ipv6", []byte("1"), 0o644)
		}); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, ns, Pod(Options{IPv6: true}))
	if rules, routes := routing(t, ns, netlink.FAMILY_V4); rules != 1 || routes != 1 {
		t.Errorf("%d rules, %d routes", rules, routes)
	}
	if err := Remove(ns); err != nil {
		t.Fatal(err)
	}
}

// DNS queries of the pod come to port 15053 and are answered from there; those
// of ztunnel itself go out.
func TestDNSCapture(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	pod, server := node.Pod(t), node.Pod(t)
	p := startProxy(t, pod.NS)
	apply(t, pod.NS, Pod(Options{IPv6: true, DNSCapture: true}))
	for _, f := range []struct{ lo, server netip.Addr }{
		{netip.MustParseAddr("127.0.0.1"), server.IP4},
		{netip.IPv6Loopback(), server.IP6},
	} {
		answer(t, pod.NS, netip.AddrPortFrom(f.lo, mesh.PortDNS), "ztunnel")
		answer(t, server.NS, netip.AddrPortFrom(f.server, 53), "server")
		to := netip.AddrPortFrom(f.server, 53)
		if got := ask(t, pod.NS, to, 0); got != "ztunnel" {
			t.Errorf("a query of the pod to %s was answered by %q", to, got)
		}
		if got := ask(t, pod.NS, to, mesh.MarkProxy); got != "server" {
			t.Errorf("a query of ztunnel to %s was answered by %q", to, got)
		}
	}
	p.none(t, "a query over UDP")
}

// answer replies to every datagram with a text.
func answer(t *testing.T, ns *netns.NS, at netip.AddrPort, text string) {
	t.Helper()
	c, err := ns.ListenPacket(context.Background(), at, netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(text), from)
		}
	}()
}

// ask sends a datagram and returns the answer, which must come from where it went.
func ask(t *testing.T, ns *netns.NS, to netip.AddrPort, mark uint32) string {
	t.Helper()
	any := netip.IPv4Unspecified()
	if to.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	c, err := ns.ListenPacket(t.Context(), netip.AddrPortFrom(any, 0), netns.ListenOptions{Mark: mark})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := c.WriteToUDPAddrPort([]byte("?"), to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("no answer from %s: %v", to, err)
	}
	if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != to {
		t.Errorf("answer from %s, want %s", from, to)
	}
	return string(buf[:n])
}

func TestParseSocket(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]socket{
		"   0: 0100007F:3A99 00000000:0000 0A 0 0":                                             {netip.MustParseAddrPort("127.0.0.1:15001"), 10},
		"   1: 0100007F:3A9E 0500007F:1F90 01 0 0":                                             {netip.MustParseAddrPort("127.0.0.1:15006"), 1},
		"   2: 00000000000000000000000001000000:3A99 00000000000000000000000001000000:1F90 06": {netip.MustParseAddrPort("[::1]:15001"), 6},
		"   3: 0000000000000000FFFF00000100007F:3A99 x:0 01":                                   {netip.MustParseAddrPort("127.0.0.1:15001"), 1},
	} {
		if got, err := parseSocket(line); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", line, got, err, want)
		}
	}
	for _, bad := range []string{"", "  sl  local_address rem_address   st", "0: zz:1 x 01", "0: 01:1 x 01", "0: 0100007F x 01", "0: 0100007F:3A99 x gg"} {
		if _, err := parseSocket(bad); err == nil {
			t.Errorf("%q was taken for a socket", bad)
		}
	}
}
