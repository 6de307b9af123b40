package dns

import (
	"iter"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// spelling is one way in which a name may have been meant.
type spelling struct {
	name string // lower case, without the final dot
	// stripped is what was left of the name when a search domain was taken off;
	// "" when none was.
	stripped string
}

// spellings yields what a client in a namespace may mean by a name, in the order
// in which it is tried: the name, its expansions to a Kubernetes name, and both
// again for what is left without a search domain.
func spellings(name, namespace, domain string) iter.Seq[spelling] {
	svc := "svc." + domain
	own := strings.ToLower(namespace) + "." + svc
	return func(yield func(spelling) bool) {
		if !expansions(spelling{name: name}, own, svc, domain, yield) {
			return
		}
		for _, search := range []string{own, svc, domain} {
			rest, ok := strings.CutSuffix(name, "."+search)
			if ok && rest != "" && !expansions(spelling{rest, rest}, own, svc, domain, yield) {
				return
			}
		}
	}
}

// expansions yields s and the Kubernetes names that it may be short for.
func expansions(s spelling, own, svc, domain string, yield func(spelling) bool) bool {
	suffixes := [2]string{}
	short := strings.HasSuffix(s.name, ".svc")
	switch labels := strings.Count(s.name, ".") + 1; {
	case labels == 1:
		suffixes[0] = own
	case labels == 2:
		suffixes = [2]string{svc, own}
	case labels == 3 && short:
		suffixes = [2]string{domain, svc}
	case labels == 3:
		suffixes[0] = svc
	case labels == 4 && short:
		suffixes[0] = domain
	}
	if !yield(s) {
		return false
	}
	for _, suffix := range suffixes {
		if suffix != "" && !yield(spelling{s.name + "." + suffix, s.stripped}) {
			return false
		}
	}
	return true
}

// wildcards yields the wildcard hostnames that cover a name, nearest first.
func wildcards(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, rest, ok := strings.Cut(name, ".")
			if !ok || !yield("*."+rest) {
				return
			}
			name = rest
		}
	}
}

// plain returns a name in lower case without the final dot.
func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// dashed is an address as one label: 10-244-1-5, fd00-244-1--5.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// reversed returns the address that a name under in-addr.arpa or ip6.arpa stands for.
func reversed(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		octets := strings.Split(rest, ".")
		if len(octets) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(octets[3] + "." + octets[2] + "." + octets[1] + "." + octets[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		d := strings.IndexByte("0123456789abcdef", rest[62-2*i])
		if d < 0 || i > 0 && rest[63-2*i] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] |= byte(d) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(b), true
}

// portOf splits a name such as _80._tcp.cart.shop; port is 0 when it has no such
// labels, and ok is false when the port has a name, which the mesh does not know.
func portOf(name string) (service string, port uint16, ok bool) {
	if !strings.HasPrefix(name, "_") {
		return name, 0, true
	}
	label, rest, _ := strings.Cut(name[1:], ".")
	service, ok = strings.CutPrefix(rest, "_tcp.")
	if !ok {
		return "", 0, false
	}
	for _, c := range label {
		if c < '0' || c > '9' || port > 6553 {
			return "", 0, false
		}
		port = port*10 + uint16(c-'0')
	}
	return service, port, port != 0
}

// typeName is a query type as metrics show it.
func typeName(t uint16) string {
	if s, ok := dns.TypeToString[t]; ok {
		return strings.ToLower(s)
	}
	return "other"
}
