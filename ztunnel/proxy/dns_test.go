package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/ztunnel/dns"
)

var (
	dns4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), mesh.PortDNS)
	dns6 = netip.AddrPortFrom(netip.IPv6Loopback(), mesh.PortDNS)
)

// dnsPod is a pod whose names are answered, in a namespace of its own.
func dnsPod(t *testing.T, ns *netns.NS) *Pod {
	t.Helper()
	store := dbStore(nil)
	node := newNode(t, store, certs.Fixed{})
	node.Settings.DNSAddrs = []netip.AddrPort{dns4, dns6}
	node.DNS = dns.NewNode(dns.NodeConfig{View: store, Zone: dns.Zone{Domain: "cluster.local"}, Servers: func() []netip.AddrPort { return nil },
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	dup, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return node.NewPod("uid", dbInfo, dup)
}

// askDNS sends a query that nothing can answer, and returns the code of the answer.
func askDNS(t *testing.T, ns *netns.NS, at netip.AddrPort, tcp bool) int {
	t.Helper()
	var c net.Conn
	var err error
	if tcp {
		c, err = ns.Dial(t.Context(), at, netns.DialOptions{})
	} else {
		c, err = ns.DialPacket(t.Context(), at, netns.DialOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	msg := []byte{0, 0, 7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 1} // ". TXT", behind its length
	msg[1] = byte(len(msg) - 2)
	if !tcp {
		msg = msg[2:]
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 512)
	least := 12
	if tcp {
		least += 2
	}
	n, err := io.ReadAtLeast(c, got, least)
	if err != nil {
		t.Fatalf("%s, tcp %v: %v", at, tcp, err)
	}
	if tcp {
		got, n = got[2:], n-2
	}
	if n < 12 || got[0] != 7 || got[1] != 7 {
		t.Fatalf("%s, tcp %v: % x", at, tcp, got[:n])
	}
	return int(got[3] & 0xf)
}

const servfail = 2

// TestPodDNS: names are answered on the pod's loopback, in both families where it has
// both, until the pod drains.
func TestPodDNS(t *testing.T) {
	t.Parallel()
	for _, six := range []bool{true, false} {
		ns := netnstest.New(t)
		if !six {
			if err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0o644) }); err != nil {
				t.Fatal(err)
			}
		}
		p := dnsPod(t, ns)
		start(t, p)
		for _, at := range []netip.AddrPort{dns4, dns6} {
			if at == dns6 && !six {
				continue
			}
			for _, tcp := range []bool{false, true} {
				if rcode := askDNS(t, ns, at, tcp); rcode != servfail {
					t.Errorf("%s, tcp %v: code %d", at, tcp, rcode)
				}
			}
		}
		p.Drain(t.Context())
		c, err := ns.ListenPacket(t.Context(), dns4, netns.ListenOptions{})
		if err != nil {
			t.Fatalf("drained, and its port is taken: %v", err)
		}
		c.Close()
	}
}

// TestPodDNSPortTaken: a pod whose programs have the port is not served at all, and
// nothing of it stays open.
func TestPodDNSPortTaken(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	taken, err := ns.Listen(t.Context(), dns6, netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := dnsPod(t, ns)
	if err := p.Listen(context.Background()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen: %v", err)
	}
	for _, port := range []uint16{mesh.PortOutbound, mesh.PortDNS} {
		l, err := ns.Listen(t.Context(), netip.AddrPortFrom(dns4.Addr(), port), netns.ListenOptions{})
		if err != nil {
			t.Errorf("port %d stays open: %v", port, err)
			continue
		}
		l.Close()
	}
	p.Close()
}
