package netns

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Addresses returns the addresses of the namespace's interfaces that others can
// reach: neither loopback nor link-local ones.
func (n *NS) Addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	err := n.Do(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap().IsGlobalUnicast() {
				out = append(out, ip.Unmap())
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("addresses of network namespace %s: %w", n.ID(), err)
	}
	return out, nil
}
