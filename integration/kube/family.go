package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"
)

// FAMILY is which addresses pods and services have: ipv4, dual (IPv4 first) or ipv6.
// The machine, the control plane and the nodes have both, and reach one another by
// IPv4 whatever it is.
//
//	machine fd00:79:N::1   control ::2   nodes ::11 …   pods fd00:246:N:node::/64   services fd00:98:N::/112

func addressFamily() string { return cmp.Or(os.Getenv("FAMILY"), "ipv4") }

func hasIPv4() bool { return addressFamily() != "ipv6" }
func hasIPv6() bool { return addressFamily() != "ipv4" }

// IPv6 addresses of the cluster.
var (
	network6    = fmt.Sprintf("fd00:79:%d::", number)
	podRange6   = fmt.Sprintf("fd00:246:%d::/48", number)
	services6   = fmt.Sprintf("fd00:98:%d::/112", number)
	kubernetes6 = fmt.Sprintf("fd00:98:%d::1", number)
	dnsIP6      = fmt.Sprintf("fd00:98:%d::10", number)
)

// inFamily are those of two values that the family has.
func inFamily(v4, v6 string) (all []string) {
	if hasIPv4() {
		all = append(all, v4)
	}
	if hasIPv6() {
		all = append(all, v6)
	}
	return all
}

func joined(v4, v6 string) string { return strings.Join(inFamily(v4, v6), ",") }

// ipam is what host-local gives a node's pods.
func ipam(p place) fields {
	var ranges, routes []any
	for _, subnet := range inFamily(p.pods, p.pods6) {
		ranges = append(ranges, []any{fields{"subnet": subnet}})
	}
	for _, dst := range inFamily("0.0.0.0/0", "::/0") {
		routes = append(routes, fields{"dst": dst})
	}
	return fields{"type": "host-local", "ranges": ranges, "routes": routes}
}

// anyAddress is what a program binds to that is to be reached by all of them.
func anyAddress() string {
	if hasIPv6() {
		return "::"
	}
	return "0.0.0.0"
}
