package fabric

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

func TestPlanDoesNotOverlap(t *testing.T) {
	t.Parallel()
	seen := map[netip.Addr]string{}
	add := func(what string, p Pair) {
		for _, a := range p.Slice() {
			if other, taken := seen[a]; taken {
				t.Errorf("%s is both %s and %s", a, other, what)
			}
			seen[a] = what
		}
	}
	add("control plane", Pair{ControlPlane4, ControlPlane6})
	add("DNS", Pair{DNS4, DNS6})
	for n := 1; n <= MaxNodes; n++ {
		add("node", NodeAddrs(n))
		for _, host := range []int{1, 2, 254} {
			p := PodAddrs(n, host)
			add("pod", p)
			if !PodPrefix4(n).Contains(p.V4) || !PodPrefix6(n).Contains(p.V6) {
				t.Errorf("pod %v is outside its node's range", p)
			}
		}
	}
	for i := 256; i < 300; i++ {
		p := ServiceAddrs(i)
		add("service", p)
		if !Services4.Contains(p.V4) || !Services6.Contains(p.V6) {
			t.Errorf("service %v is outside the services' range", p)
		}
	}
}

// TestPodsReachEachOther: pods of two nodes, and two pods of one node, connect
// in both families, and the server sees the client's own address.
func TestPodsReachEachOther(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to make network namespaces: run the tests with sudo")
	}
	dir := t.TempDir()
	f, err := New(filepath.Join(dir, "ns"), filepath.Join(dir, "pods"), []string{"node-1", "node-2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	a := addPod(t, f, 0, "a", PodAddrs(1, 2))
	b := addPod(t, f, 0, "b", PodAddrs(1, 3))
	c := addPod(t, f, 1, "c", PodAddrs(2, 2))
	for _, pair := range []struct {
		name     string
		from, to *netns.NS
		src, dst Pair
	}{
		{"same node", a, b, PodAddrs(1, 2), PodAddrs(1, 3)},
		{"across nodes", a, c, PodAddrs(1, 2), PodAddrs(2, 2)},
		{"from the node", f.Nodes[0].NS, a, PodGateway(1), PodAddrs(1, 2)},
		{"to the control plane", c, f.ControlPlane, PodAddrs(2, 2), Pair{ControlPlane4, ControlPlane6}},
	} {
		for i, dst := range pair.dst.Slice() {
			if got := dialed(t, pair.from, pair.to, dst); got != pair.src.Slice()[i] {
				t.Errorf("%s: server at %s saw %s, want %s", pair.name, dst, got, pair.src.Slice()[i])
			}
		}
	}
	if err := f.RemovePod(f.Nodes[0], "a", PodAddrs(1, 2)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.PodPath("a")); !os.IsNotExist(err) {
		t.Errorf("the namespace of a removed pod is still there: %v", err)
	}
}

func addPod(t *testing.T, f *Fabric, node int, uid string, addrs Pair) *netns.NS {
	t.Helper()
	ns, err := f.AddPod(f.Nodes[node], uid, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// dialed connects from one namespace to another and returns the address that
// the listener saw.
func dialed(t *testing.T, from, to *netns.NS, dst netip.Addr) netip.Addr {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := to.Listen(ctx, netip.AddrPortFrom(dst, 7000), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := from.Dial(ctx, netip.AddrPortFrom(dst, 7000), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s, "x"); err != nil {
		t.Fatal(err)
	}
	return s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}
