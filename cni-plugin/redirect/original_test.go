package redirect

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// Which server a redirected query was for is known, also when one socket asks
// several at once, and answers come from the server that was asked.
func TestOriginalUDP(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	pod, one, two := node.Pod(t), node.Pod(t), node.Pod(t)
	apply(t, pod.NS, Pod(Options{IPv6: true, DNSCapture: true}))
	tracker, err := pod.NS.NewTracker()
	if err != nil {
		t.Fatal(err)
	}
	defer tracker.Close()
	for _, f := range []struct{ lo, any, one, two netip.Addr }{
		{netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified(), one.IP4, two.IP4},
		{netip.IPv6Loopback(), netip.IPv6Unspecified(), one.IP6, two.IP6},
	} {
		at := netip.AddrPortFrom(f.lo, mesh.PortDNS)
		proxy, err := pod.NS.ListenPacket(t.Context(), at, netns.ListenOptions{Mark: mesh.MarkProxy})
		if err != nil {
			t.Fatal(err)
		}
		defer proxy.Close()
		client, err := pod.NS.ListenPacket(t.Context(), netip.AddrPortFrom(f.any, 0), netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		proxy.SetDeadline(time.Now().Add(2 * time.Minute))
		client.SetDeadline(time.Now().Add(2 * time.Minute))
		buf := make([]byte, 100)
		for _, server := range []netip.Addr{f.one, f.two, f.one} {
			want := netip.AddrPortFrom(server, 53)
			if _, err := client.WriteToUDPAddrPort([]byte("?"), want); err != nil {
				t.Fatal(err)
			}
			_, from, err := proxy.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tracker.OriginalUDP(at, from)
			if err != nil || got != want {
				t.Errorf("the query from %s was for %v (%v), want %s", from, got, err, want)
			}
			if _, err := proxy.WriteToUDPAddrPort([]byte("!"), from); err != nil {
				t.Fatal(err)
			}
			_, answerer, err := client.ReadFromUDPAddrPort(buf)
			if err != nil || netip.AddrPortFrom(answerer.Addr().Unmap(), answerer.Port()) != want {
				t.Errorf("answered by %s (%v), want %s", answerer, err, want)
			}
		}
		if _, err := tracker.OriginalUDP(at, netip.AddrPortFrom(f.one, 9)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("of a flow that does not exist: %v", err)
		}
	}
	tracker.Close()
	if _, err := tracker.OriginalUDP(netip.AddrPort{}, netip.AddrPort{}); err == nil {
		t.Error("closed, and answers")
	}
}

func BenchmarkOriginalUDP(b *testing.B) {
	ns := netnstest.New(b)
	at := netip.MustParseAddrPort("127.0.0.1:9")
	tracker, err := ns.NewTracker()
	if err != nil {
		b.Fatal(err)
	}
	defer tracker.Close()
	for b.Loop() {
		if _, err := tracker.OriginalUDP(at, at); !errors.Is(err, unix.ENOENT) {
			b.Fatal(err)
		}
	}
}
