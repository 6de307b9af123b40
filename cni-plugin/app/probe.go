package app

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// probeSource returns the address from which this node's processes, the kubelet
// among them, call the pod: the one that the kernel's route to it prefers.
func probeSource(pod netip.Addr) (netip.Addr, error) {
	routes, err := netlink.RouteGet(pod.AsSlice())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up route to pod %s: %w", pod, err)
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Src); ok {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("look up route to pod %s: no source address", pod)
}
