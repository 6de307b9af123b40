package proxy

import (
	"net/netip"
	"os"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Programs see the client's own address when the namespace lets us bind foreign
// ones and answers to them find back to us: over loopback, by a rule of the pod's
// ruleset.

// originOf returns the address that a connection to an application is made
// from: the client's, unless that is the application's own or of another family.
func (p *Pod) originOf(client, app netip.Addr) netip.Addr {
	if !p.origSrc || client == app || client.Is4() != app.Is4() {
		return netip.Addr{}
	}
	return client
}

// inside returns where a program is called that is meant to be at to. In a pod whose
// loopback has no IPv6 nothing reaches the pod's own IPv6 addresses from inside, so
// there it is the pod's IPv4 address, if it has one.
func (p *Pod) inside(self *mesh.Workload, to netip.AddrPort) netip.AddrPort {
	if p.loop6 || !to.Addr().Is6() {
		return to
	}
	if to.Addr().IsLoopback() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
	}
	for _, a := range self.Addresses {
		if a.Is4() {
			return netip.AddrPortFrom(a, to.Port())
		}
	}
	return to
}

// hasLoopback6 reports whether loopback has IPv6 in a namespace.
func hasLoopback6(ns *netns.NS) bool {
	var off []byte
	err := ns.Do(func() (err error) {
		off, err = os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
		return err
	})
	return err == nil && strings.TrimSpace(string(off)) == "0"
}
