// Package netnstest makes throw-away network namespaces for tests: single ones,
// pairs joined by a cable, and a node with pods behind its bridge.
//
//	New    one namespace, loopback only
//	Pair   a ──veth── b         10.77.0.1, .2    fd77::1, ::2
//	Node   pod ─┐
//	       pod ─┤ bridge        10.78.0.1 and fd78::1 are the node
//	       pod ─┘               10.78.0.2… and fd78::2… are its pods
//
// Everything ends with the test, and nothing of it touches the namespace that
// the test runs in. Without root the test fails: it does not skip.
package netnstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// RequireRoot fails the test unless it can make network namespaces.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and must run as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	}
}

// New returns a namespace of its own with loopback up.
func New(t testing.TB) *netns.NS {
	t.Helper()
	RequireRoot(t)
	ns, err := netns.NewUnnamed()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Named returns a namespace that is bound at a path of its own, as a runtime
// does it for a pod.
func Named(t testing.TB, name string) (*netns.NS, string) {
	t.Helper()
	RequireRoot(t)
	path := filepath.Join(t.TempDir(), name)
	ns, err := netns.New(path)
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Delete(path); err != nil {
			t.Errorf("delete network namespace: %v", err)
		}
	})
	return ns, path
}

// Addresses of the two ends that Pair joins.
var (
	PairA4 = netip.MustParsePrefix("10.77.0.1/24")
	PairB4 = netip.MustParsePrefix("10.77.0.2/24")
	PairA6 = netip.MustParsePrefix("fd77::1/64")
	PairB6 = netip.MustParsePrefix("fd77::2/64")
)

// Pair returns two namespaces that reach each other over eth0.
func Pair(t testing.TB) (a, b *netns.NS) {
	t.Helper()
	a, b = New(t), New(t)
	Cable(t, End{a, "eth0", []netip.Prefix{PairA4, PairA6}}, End{b, "eth0", []netip.Prefix{PairB4, PairB6}})
	return a, b
}

// End is one end of a cable.
type End struct {
	NS    *netns.NS
	Name  string
	Addrs []netip.Prefix
}

// Cable joins two namespaces by a veth pair and sets both ends up. Their addresses can
// be used when it returns.
func Cable(t testing.TB, a, b End) {
	t.Helper()
	must(t, "make veth pair", a.NS.Do(func() error { return addVeth(a.Name, b) }))
	for _, e := range []End{a, b} {
		must(t, "set up "+e.Name, e.NS.Do(func() error { return setUp(e.Name, e.Addrs) }))
	}
	for _, e := range []End{a, b} { // the second one's is the carrier of the first
		must(t, "addresses of "+e.Name, e.NS.Do(func() error { return settle(e.Addrs) }))
	}
}

// settle waits until the kernel takes what is sent to the addresses for its own. For
// IPv6 it comes to that after the call that adds an address: until then even the
// namespace's own answers to itself go out by the link.
func settle(addrs []netip.Prefix) error {
	for _, p := range addrs {
		for deadline := time.Now().Add(settleLimit); ; time.Sleep(time.Millisecond) {
			routes, err := netlink.RouteGet(p.Addr().AsSlice())
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %s: still not local after %s: %v, %w", p, settleLimit, routes, err)
			}
		}
	}
	return nil
}

const settleLimit = 30 * time.Second

func addVeth(name string, peer End) error {
	return netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      peer.Name,
		PeerNamespace: netlink.NsFd(peer.NS.FD()),
	})
}

func setUp(name string, addrs []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Node is a namespace with a bridge to which pods are joined. It forwards
// between them and is their default gateway.
type Node struct {
	NS  *netns.NS
	IP4 netip.Addr // 10.78.0.1
	IP6 netip.Addr // fd78::1

	mu   sync.Mutex
	pods int
}

// Pod is one pod of a Node.
type Pod struct {
	NS   *netns.NS
	Path string // where its namespace is bound
	IP4  netip.Addr
	IP6  netip.Addr
}

// NewNode returns a node without pods.
func NewNode(t testing.TB) *Node {
	t.Helper()
	n := &Node{NS: New(t), IP4: netip.MustParseAddr("10.78.0.1"), IP6: netip.MustParseAddr("fd78::1")}
	must(t, "make bridge", n.NS.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
			return err
		}
		return setUp("br0", []netip.Prefix{netip.PrefixFrom(n.IP4, 24), netip.PrefixFrom(n.IP6, 64)})
	}))
	return n
}

// Pod joins one more pod to the node.
func (n *Node) Pod(t testing.TB) *Pod {
	t.Helper()
	n.mu.Lock()
	n.pods++
	i := n.pods
	n.mu.Unlock()
	ns, path := Named(t, fmt.Sprintf("pod-%d", i))
	p := &Pod{NS: ns, Path: path,
		IP4: netip.AddrFrom4([4]byte{10, 78, 0, byte(1 + i)}),
		IP6: netip.MustParseAddr(fmt.Sprintf("fd78::%x", 1+i))}
	host := fmt.Sprintf("veth%d", i)
	Cable(t, End{ns, "eth0", []netip.Prefix{netip.PrefixFrom(p.IP4, 24), netip.PrefixFrom(p.IP6, 64)}}, End{n.NS, host, nil})
	must(t, "join bridge", n.NS.Do(func() error { return enslave(host, "br0") }))
	must(t, "default routes", ns.Do(func() error { return errors.Join(defaultRoute(n.IP4), defaultRoute(n.IP6)) }))
	return p
}

func enslave(port, bridge string) error {
	l, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	return netlink.LinkSetMaster(l, br)
}

func defaultRoute(gw netip.Addr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice()})
}

// OpenFDs returns how many descriptors the process holds, for leak checks.
func OpenFDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, "list descriptors", err)
	return len(entries)
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
