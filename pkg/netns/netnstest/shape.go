package netnstest

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

// WithoutIPv4 takes the pod's IPv4 address away. It keeps 127.0.0.1.
func (p *Pod) WithoutIPv4(t testing.TB) {
	t.Helper()
	must(t, "take IPv4 away", p.NS.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.IP4, 24))})
	}))
	p.IP4 = netip.Addr{}
}

// WithoutIPv6 switches IPv6 off in the pod, on loopback too.
func (p *Pod) WithoutIPv6(t testing.TB) {
	t.Helper()
	p.disableIPv6(t, "all")
	p.IP6 = netip.Addr{}
}

// WithoutLoopback6 switches IPv6 off on loopback only: there is no ::1.
func (p *Pod) WithoutLoopback6(t testing.TB) { t.Helper(); p.disableIPv6(t, "lo") }

func (p *Pod) disableIPv6(t testing.TB, where string) {
	t.Helper()
	must(t, "switch IPv6 off on "+where, p.NS.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+where+"/disable_ipv6", []byte("1"), 0)
	}))
}

// MTU sets the largest packet of the node's bridge and of every pod that is on it.
func (n *Node) MTU(t testing.TB, mtu int, pods ...*Pod) {
	t.Helper()
	set := func(names ...string) error {
		var errs []error
		for _, name := range names {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetMTU(link, mtu)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	for _, p := range pods {
		must(t, "set the pod's MTU", p.NS.Do(func() error { return set("eth0") }))
	}
	must(t, "set the node's MTU", n.NS.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		var names []string
		for _, l := range links {
			if l.Attrs().MasterIndex != 0 || l.Attrs().Name == "br0" {
				names = append(names, l.Attrs().Name)
			}
		}
		return set(names...)
	}))
}
