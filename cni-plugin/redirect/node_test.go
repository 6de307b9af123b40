package redirect

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// finish ends a connection to the echo program, and waits until it has ended there.
func finish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
}

// What root's processes on the node open to a pod passes its rules while the node
// rewrites where it comes from, and is captured otherwise.
func TestNodeRewritesProbes(t *testing.T) {
	t.Parallel()
	node := netnstest.NewNode(t)
	pod, other := node.Pod(t), node.Pod(t)
	p := startProxy(t, pod.NS)
	echo(t, pod.NS, 8080)
	apply(t, pod.NS, Pod(Options{IPv6: true, ProbeSNAT: true}))
	rewritten := func(yes bool) {
		t.Helper()
		if got, err := NodeApplied(node.NS); err != nil || got != yes {
			t.Errorf("the node has rules: %v, %v", got, err)
		}
		for ip, source := range map[netip.Addr]netip.Addr{pod.IP4: probeSNAT4, pod.IP6: probeSNAT6} {
			to := netip.AddrPortFrom(ip, 8080)
			c, caller := call(t, node.NS, to)
			finish(t, c) // without rules nobody would rewrite what it still has to say
			if (caller == source.String()) != yes {
				t.Errorf("%s was called by %s", to, caller)
			}
			if yes {
				p.none(t, "a probe")
			} else if got := <-p.seen; got.port != mesh.PortPlaintext {
				t.Errorf("captured %+v, want the port for plaintext", got)
			}
		}
	}
	rewritten(false)
	for range 2 {
		if err := ApplyNode(node.NS, Node([]netip.Addr{pod.IP4, pod.IP6})); err != nil {
			t.Fatal(err)
		}
	}
	rewritten(true)
	call(t, other.NS, netip.AddrPortFrom(pod.IP4, 8080)) // what the node only passes on
	p.one(t, captured{mesh.PortPlaintext, netip.AddrPortFrom(pod.IP4, 8080), other.IP4})
	for range 2 {
		if err := RemoveNode(node.NS); err != nil {
			t.Fatal(err)
		}
	}
	rewritten(false)
}
