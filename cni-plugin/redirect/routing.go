package redirect

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// addRouting, inside the namespace, makes packets with mark 0x111 local ones.
// What is there already is left; IPv6 is left out where the kernel or the pod's
// loopback has it switched off.
func (rs Ruleset) addRouting() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if rs.Route4 {
		if err := addFamily(lo, netlink.FAMILY_V4); err != nil {
			return err
		}
	}
	if rs.Route6 {
		if err := addFamily(lo, netlink.FAMILY_V6); err != nil && !withoutIPv6(err) {
			return err
		}
	}
	return nil
}

func addFamily(lo netlink.Link, family int) error {
	if err := netlink.RouteReplace(localRoute(lo, family)); err != nil {
		return fmt.Errorf("route in table %d: %w", RouteTable, err)
	}
	if err := netlink.RuleAdd(markRule(family)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("ip rule for mark %#x: %w", mesh.MarkInbound, err)
	}
	return nil
}

// withoutIPv6 reports whether err is what a kernel without IPv6, or a loopback
// with disable_ipv6=1, answers.
func withoutIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENODEV)
}

func markRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(mesh.MarkMask)
	r.Family, r.Priority, r.Table, r.Mark, r.Mask = family, RulePriority, RouteTable, mesh.MarkInbound, &mask
	return r
}

func localRoute(lo netlink.Link, family int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == netlink.FAMILY_V6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: all, Table: RouteTable, Family: family,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
}

// removeRouting, inside the namespace, undoes addRouting.
func removeRouting() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := netlink.RuleDel(markRule(family)); err != nil && !absent(err) {
			return fmt.Errorf("remove ip rule for mark %#x: %w", mesh.MarkInbound, err)
		}
		if err := netlink.RouteDel(localRoute(lo, family)); err != nil && !absent(err) {
			return fmt.Errorf("remove route of table %d: %w", RouteTable, err)
		}
	}
	return nil
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || withoutIPv6(err)
}
