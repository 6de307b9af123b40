package vips

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

func TestText(t *testing.T) {
	t.Parallel()
	r := Ruleset{
		Ranges: []netip.Prefix{fabric.Services4},
		Services: []Service{
			{Name: "web", Addr: ap("10.96.1.0:80"), Protocol: TCP, Endpoints: []netip.AddrPort{ap("10.244.2.2:8080"), ap("10.244.1.2:8080"), ap("10.244.1.2:8080")}},
			{Name: "dns", Addr: ap("10.96.0.9:53"), Protocol: UDP},
		},
	}
	want := `dns 10.96.0.9:53/udp -> refused
web 10.96.1.0:80/tcp -> 10.244.1.2:8080 10.244.2.2:8080
other 10.96.0.0/16 -> refused
`
	if got := r.Normal().Text(); got != want {
		t.Errorf("Text:\n%s\nwant:\n%s", got, want)
	}
}

// TestApply: a virtual address reaches every endpoint, also one that lives on
// the client's own node; without endpoints it is refused, and so is an unknown one.
func TestApply(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to make network namespaces: run the tests with sudo")
	}
	dir := t.TempDir()
	f, err := fabric.New(filepath.Join(dir, "ns"), filepath.Join(dir, "pods"), []string{"node-1", "node-2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	client := pod(t, f, 0, "client", fabric.PodAddrs(1, 2))
	near, far := fabric.PodAddrs(1, 3), fabric.PodAddrs(2, 2)
	nearPod := pod(t, f, 0, "near", near)
	serve(t, nearPod, near, "near")
	serve(t, pod(t, f, 1, "far", far), far, "far")

	vip := fabric.ServiceAddrs(256)
	full := ruleset(vip, near, far)
	if err := Apply(f.Nodes[0].NS, full); err != nil {
		t.Fatal(err)
	}
	for _, addr := range vip.Slice() {
		seen := map[string]bool{}
		for i := 0; i < 200 && len(seen) < 2; i++ {
			answer, err := ask(t, client, netip.AddrPortFrom(addr, 80))
			if err != nil {
				t.Fatalf("dial %s: %v", addr, err)
			}
			seen[answer] = true
		}
		if !seen["near"] || !seen["far"] {
			t.Errorf("%s reached only %v", addr, seen)
		}
		for range 20 { // about half of them to itself
			if _, err := ask(t, nearPod, netip.AddrPortFrom(addr, 80)); err != nil {
				t.Fatalf("dial %s from one of its own endpoints: %v", addr, err)
			}
		}
		if _, err := ask(t, client, netip.AddrPortFrom(addr, 81)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a port that the service does not have: %v, want refused", err)
		}
	}
	if err := Apply(f.Nodes[0].NS, ruleset(vip)); err != nil {
		t.Fatal(err)
	}
	for _, addr := range vip.Slice() {
		if _, err := ask(t, client, netip.AddrPortFrom(addr, 80)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s without endpoints: %v, want refused", addr, err)
		}
	}
}

func ruleset(vip fabric.Pair, endpoints ...fabric.Pair) Ruleset {
	r := Ruleset{Ranges: []netip.Prefix{fabric.Services4, fabric.Services6}}
	for i, addr := range vip.Slice() {
		s := Service{Name: "web", Addr: netip.AddrPortFrom(addr, 80), Protocol: TCP}
		for _, e := range endpoints {
			s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(e.Slice()[i], 8080))
		}
		r.Services = append(r.Services, s)
	}
	return r
}

func pod(t *testing.T, f *fabric.Fabric, node int, uid string, addrs fabric.Pair) *netns.NS {
	t.Helper()
	ns, err := f.AddPod(f.Nodes[node], uid, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func serve(t *testing.T, ns *netns.NS, addrs fabric.Pair, answer string) {
	t.Helper()
	for _, a := range addrs.Slice() {
		l, err := ns.Listen(t.Context(), netip.AddrPortFrom(a, 8080), netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go answerAll(l, answer)
	}
}

func answerAll(l net.Listener, answer string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, answer)
		c.Close()
	}
}

func ask(t *testing.T, from *netns.NS, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := from.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
