// Package fabric lays out a cluster's network on one machine: a namespace for
// each node, one for the control plane and one for the switch that joins them,
// and a namespace for each pod.
//
//	┌ fabric ─────────────────────────────────────────────┐
//	│                  br0 (a switch, no addresses)       │
//	└───┬────────────────────┬───────────────────┬────────┘
//	  eth0 172.30.0.2      eth0 172.30.0.11    eth0 172.30.0.12
//	┌ control plane ┐    ┌ node-1 ──────────┐ ┌ node-2 ──────────┐
//	└───────────────┘    │ pods 10.244.1.1  │ │ pods 10.244.2.1  │
//	                     └──┬────────┬──────┘ └──┬───────────────┘
//	                   ┌ pod ┐    ┌ pod ┐     ┌ pod ┐   eth0 10.244.1.2/32 …
//
// Every address is of the plan in plan.go, and nothing is made in the machine's
// own network namespace: links are born inside the namespaces that they join.
// Pods reach even their neighbours through their node, so that the node's rules
// see both directions of every connection.
//
// A Fabric is safe for concurrent use.
package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Names of devices.
const (
	Bridge    = "br0"  // the switch, in the fabric's namespace
	PodBridge = "pods" // a node's bridge of its pods
	Uplink    = "eth0" // a node's or a pod's way out
)

// Node is one machine of the cluster.
type Node struct {
	Name   string
	Number int // from 1
	NS     *netns.NS
	Path   string // where its namespace is mounted
}

// Fabric is the network of one mesh.
type Fabric struct {
	dir    string // holds the mounts of the namespaces that are not pods'
	podDir string // holds the mounts of pods' namespaces, by pod UID

	Switch       *netns.NS
	ControlPlane *netns.NS
	Nodes        []*Node

	mu   sync.Mutex
	pods map[string]*netns.NS // by UID
}

// New makes the namespaces and links of a mesh with the given nodes. dir and
// podDir must exist. When New fails it has removed what it made.
func New(dir, podDir string, nodes []string) (_ *Fabric, err error) {
	if len(nodes) > MaxNodes {
		return nil, fmt.Errorf("lay out network: %d nodes, at most %d fit", len(nodes), MaxNodes)
	}
	f := &Fabric{dir: dir, podDir: podDir, pods: map[string]*netns.NS{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if f.Switch, err = f.make("fabric", nil); err != nil {
		return nil, err
	}
	if err := f.makeSwitch(); err != nil {
		return nil, fmt.Errorf("make switch: %w", err)
	}
	if f.ControlPlane, err = f.make("control-plane", nil); err != nil {
		return nil, err
	}
	if err := f.join("control-plane", f.ControlPlane, Pair{ControlPlane4, ControlPlane6}, len(nodes), 0); err != nil {
		return nil, err
	}
	for i, name := range nodes {
		if err := f.addNode(name, i+1, len(nodes)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Path returns where the namespace of that name is mounted.
func (f *Fabric) Path(name string) string { return filepath.Join(f.dir, name) }

// PodPath returns where the namespace of the pod with that UID is mounted.
func (f *Fabric) PodPath(uid string) string { return filepath.Join(f.podDir, uid) }

// make makes a namespace and sets its sysctls.
func (f *Fabric) make(name string, sysctls []sysctl) (*netns.NS, error) {
	return makeNamespace(f.Path(name), sysctls)
}

func makeNamespace(path string, sysctls []sysctl) (*netns.NS, error) {
	ns, err := netns.New(path)
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", path, err)
	}
	err = ns.Do(func() error {
		for _, s := range sysctls {
			if err := s.write(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up network namespace %s: %w", path, err), ns.Close(), netns.Delete(path))
	}
	return ns, nil
}

func (f *Fabric) makeSwitch() error {
	return f.Switch.Do(func() error {
		quietBridges()
		return withHandle(func(h *netlink.Handle) error {
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Bridge}}
			if err := h.LinkAdd(br); err != nil {
				return err
			}
			return h.LinkSetUp(br)
		})
	})
}

func (f *Fabric) addNode(name string, number, of int) error {
	ns, err := f.make(name, nodeSysctls)
	if err != nil {
		return err
	}
	f.Nodes = append(f.Nodes, &Node{Name: name, Number: number, NS: ns, Path: f.Path(name)})
	if err := f.join(name, ns, NodeAddrs(number), of, number); err != nil {
		return err
	}
	err = ns.Do(func() error {
		quietBridges()
		return withHandle(func(h *netlink.Handle) error { return addPodBridge(h, number) })
	})
	if err != nil {
		return fmt.Errorf("make pods' bridge of %s: %w", name, err)
	}
	return nil
}

// addPodBridge makes the bridge that a node's pods hang on. It carries the
// cluster's DNS address, and the route of all virtual addresses, so that one
// without endpoints is answered by the node's rules instead of going nowhere.
func addPodBridge(h *netlink.Handle, number int) error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: PodBridge, HardwareAddr: net.HardwareAddr{2, 0, 10, 244, byte(number), 1}}}
	if err := h.LinkAdd(br); err != nil {
		return err
	}
	gw := PodGateway(number)
	for _, p := range []netip.Prefix{
		netip.PrefixFrom(gw.V4, 24), netip.PrefixFrom(gw.V6, 64),
		netip.PrefixFrom(DNS4, 32), netip.PrefixFrom(DNS6, 128),
	} {
		if err := h.AddrAdd(br, address(p)); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(br); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{Services4, Services6} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: br.Attrs().Index, Dst: ipNet(p)}); err != nil {
			return fmt.Errorf("route %s: %w", p, err)
		}
	}
	return nil
}

// SwitchPort returns the name of the switch's port that leads to a node. Names of
// nodes are short enough: a device's name has at most 15 bytes.
func SwitchPort(node string) string { return "p-" + node }

// join connects ns to the switch and routes the pods of every node but self.
func (f *Fabric) join(name string, ns *netns.NS, addrs Pair, nodes, self int) error {
	if err := connect(f.Switch, SwitchPort(name), Bridge, ns, Uplink); err != nil {
		return fmt.Errorf("connect %s to the switch: %w", name, err)
	}
	err := ns.Do(func() error {
		return withHandle(func(h *netlink.Handle) error {
			eth, err := h.LinkByName(Uplink)
			if err != nil {
				return err
			}
			for _, p := range []netip.Prefix{netip.PrefixFrom(addrs.V4, Nodes4.Bits()), netip.PrefixFrom(addrs.V6, Nodes6.Bits())} {
				if err := h.AddrAdd(eth, address(p)); err != nil {
					return fmt.Errorf("address %s: %w", p, err)
				}
			}
			if err := h.LinkSetUp(eth); err != nil {
				return err
			}
			return routeToPods(h, eth, nodes, self)
		})
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

func routeToPods(h *netlink.Handle, eth netlink.Link, nodes, self int) error {
	for n := 1; n <= nodes; n++ {
		if n == self {
			continue
		}
		via := NodeAddrs(n)
		for _, r := range []struct {
			to  netip.Prefix
			via netip.Addr
		}{{PodPrefix4(n), via.V4}, {PodPrefix6(n), via.V6}} {
			route := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(r.to), Gw: r.via.AsSlice()}
			if err := h.RouteAdd(route); err != nil {
				return fmt.Errorf("route %s via %s: %w", r.to, r.via, err)
			}
		}
	}
	return nil
}

// AddPod makes the namespace of the pod with that UID and joins it to its node.
func (f *Fabric) AddPod(node *Node, uid string, addrs Pair) (_ *netns.NS, err error) {
	ns, err := makeNamespace(f.PodPath(uid), podSysctls)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.pods[uid] = ns
	f.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect pod %s to %s: %w", uid, node.Name, err), f.RemovePod(node, uid, addrs))
		}
	}()
	if err := connect(node.NS, podPort(addrs), PodBridge, ns, Uplink); err != nil {
		return nil, err
	}
	err = ns.Do(func() error {
		return withHandle(func(h *netlink.Handle) error { return configurePod(h, PodGateway(node.Number), addrs) })
	})
	return ns, err
}

// podPort names the node's end of a pod's link after the pod's address.
func podPort(addrs Pair) string { return fmt.Sprintf("pod%d", addrs.V4.As4()[3]) }

func configurePod(h *netlink.Handle, gw, addrs Pair) error {
	eth, err := h.LinkByName(Uplink)
	if err != nil {
		return err
	}
	for _, a := range addrs.Slice() {
		if err := h.AddrAdd(eth, address(netip.PrefixFrom(a, a.BitLen()))); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(eth); err != nil {
		return err
	}
	for _, via := range gw.Slice() {
		direct := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(netip.PrefixFrom(via, via.BitLen())), Scope: netlink.SCOPE_LINK}
		if err := h.RouteAdd(direct); err != nil {
			return fmt.Errorf("route to gateway %s: %w", via, err)
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if via.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(all), Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("default route via %s: %w", via, err)
		}
	}
	return nil
}

// RemovePod takes a pod's link and namespace away. The link goes first: a
// process that still holds the namespace keeps nothing reachable.
func (f *Fabric) RemovePod(node *Node, uid string, addrs Pair) error {
	f.mu.Lock()
	ns := f.pods[uid]
	delete(f.pods, uid)
	f.mu.Unlock()
	if ns == nil {
		return nil
	}
	err := node.NS.Do(func() error {
		return withHandle(func(h *netlink.Handle) error {
			link, err := h.LinkByName(podPort(addrs))
			if err != nil {
				return nil // gone with the namespace
			}
			return h.LinkDel(link)
		})
	})
	return errors.Join(err, ns.Close(), netns.Delete(f.PodPath(uid)))
}

// Close removes every namespace that is left. Close is idempotent.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for uid, ns := range f.pods {
		errs = append(errs, ns.Close(), netns.Delete(f.PodPath(uid)))
		delete(f.pods, uid)
	}
	for _, n := range f.Nodes {
		errs = append(errs, n.NS.Close(), netns.Delete(n.Path))
	}
	f.Nodes = nil
	if f.ControlPlane != nil {
		errs = append(errs, f.ControlPlane.Close(), netns.Delete(f.Path("control-plane")))
		f.ControlPlane = nil
	}
	if f.Switch != nil {
		errs = append(errs, f.Switch.Close(), netns.Delete(f.Path("fabric")))
		f.Switch = nil
	}
	return errors.Join(errs...)
}

// connect makes a link between a and b: its end in a is called aName and is a
// port of a's bridge, its end in b is called bName. Neither end is ever outside.
func connect(a *netns.NS, aName, bridge string, b *netns.NS, bName string) error {
	return a.Do(func() error {
		return withHandle(func(h *netlink.Handle) error { return addPort(h, aName, bridge, b.FD(), bName) })
	})
}

func addPort(h *netlink.Handle, name, bridge string, peerNS int, peer string) error {
	br, err := h.LinkByName(bridge)
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index},
		PeerName:  peer, PeerNamespace: netlink.NsFd(peerNS),
	}
	if err := h.LinkAdd(veth); err != nil {
		return err
	}
	return h.LinkSetUp(veth)
}

func withHandle(do func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return do(h)
}

// address is p as an address to add: usable at once, without duplicate address
// detection, for the plan gives each address to one device only.
func address(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
