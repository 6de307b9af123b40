package netns_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// A socket of DialPacket hears its peer and nobody else.
func TestDialPacket(t *testing.T) {
	t.Parallel()
	a, b := netnstest.Pair(t)
	for _, f := range []struct{ any, server netip.Addr }{
		{netip.IPv4Unspecified(), netnstest.PairB4.Addr()}, {netip.IPv6Unspecified(), netnstest.PairB6.Addr()},
	} {
		server, err := b.ListenPacket(t.Context(), netip.AddrPortFrom(f.any, 0), netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		other, err := b.ListenPacket(t.Context(), netip.AddrPortFrom(f.any, 0), netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		port := server.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
		c, err := a.DialPacket(t.Context(), netip.AddrPortFrom(f.server, port), netns.DialOptions{Mark: 0x539})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		deadline := time.Now().Add(2 * time.Minute)
		c.SetDeadline(deadline)
		server.SetDeadline(deadline)
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		_, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		other.WriteToUDPAddrPort([]byte("forged"), from)
		server.WriteToUDPAddrPort([]byte("!"), from)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "!" {
			t.Errorf("heard %q, %v", buf[:n], err)
		}
		server.Close()
		c.Write([]byte("?"))
		if _, err := c.Read(buf); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("where nobody listens: %v", err)
		}
	}
}

func BenchmarkDialPacket(b *testing.B) {
	ns := netnstest.New(b)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	for name, in := range map[string]*netns.NS{"inside": ns, "own": nil} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := in.DialPacket(b.Context(), to, netns.DialOptions{})
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
