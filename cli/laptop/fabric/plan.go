package fabric

import (
	"fmt"
	"net/netip"
)

// MaxNodes is how many nodes fit the address plan.
const MaxNodes = 200

// Prefixes of the plan. All of them exist only inside the mesh's own namespaces.
var (
	Nodes4    = netip.MustParsePrefix("172.30.0.0/24")
	Nodes6    = netip.MustParsePrefix("fd00:30::/64")
	Pods4     = netip.MustParsePrefix("10.244.0.0/16")
	Services4 = netip.MustParsePrefix("10.96.0.0/16")
	Services6 = netip.MustParsePrefix("fd00:96::/112")
)

// Fixed addresses of the plan.
var (
	ControlPlane4 = netip.MustParseAddr("172.30.0.2")
	ControlPlane6 = netip.MustParseAddr("fd00:30::2")
	DNS4          = netip.MustParseAddr("10.96.0.10")
	DNS6          = netip.MustParseAddr("fd00:96::a")
)

// Pair is an address of each family.
type Pair struct{ V4, V6 netip.Addr }

// Slice returns the addresses, version 4 first.
func (p Pair) Slice() []netip.Addr { return []netip.Addr{p.V4, p.V6} }

// NodeAddrs returns the addresses of node number n, from 1, on the fabric.
func NodeAddrs(n int) Pair {
	return Pair{
		netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + n)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:30::%x", 10+n)),
	}
}

// PodPrefix4 returns the version 4 range of the pods of node n.
func PodPrefix4(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24)
}

// PodPrefix6 returns the version 6 range of the pods of node n.
func PodPrefix6(n int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd00:244:%x::/64", n))
}

// PodGateway returns node n's own addresses on its pods' bridge.
func PodGateway(n int) Pair { return PodAddrs(n, 1) }

// PodAddrs returns the addresses of the pod with that host number on node n.
// Host numbers run from 2 to 254.
func PodAddrs(n, host int) Pair {
	return Pair{
		netip.AddrFrom4([4]byte{10, 244, byte(n), byte(host)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:244:%x::%x", n, host)),
	}
}

// ServiceAddrs returns the virtual addresses with that number. Numbers below 256
// are kept for services that ask for an address.
func ServiceAddrs(number int) Pair {
	return Pair{
		netip.AddrFrom4([4]byte{10, 96, byte(number >> 8), byte(number)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", number)),
	}
}
