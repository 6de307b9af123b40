package compile

import (
	"encoding/binary"
	"net/netip"
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Where virtual addresses of ServiceEntries come from. Both are Istio's; nothing is
// ever routed there.
var (
	allocation4 = netip.MustParsePrefix("240.240.0.0/16")
	allocation6 = netip.MustParsePrefix("2001:2::/48")
)

// LabelAllocate set to "false" keeps addresses from being allocated.
const LabelAllocate = "networking.istio.io/enable-autoallocate-ip"

// allocates reports whether the entry's hosts get addresses of our own.
func allocates(e *source.ServiceEntry) bool {
	return len(e.Spec.GetAddresses()) == 0 && e.Spec.GetResolution() != networking.ServiceEntry_NONE &&
		e.Labels[LabelAllocate] != "false" && e.Annotations[LabelAllocate] != "false"
}

// tries is how many addresses a host chooses from.
const tries = 8

// allocated returns the addresses of one host: those that its status records, or
// else those that follow from its name. So every replica finds the same ones, and
// so does the next after a restart, without asking anybody; once they are recorded
// they stay, whoever comes.
func (c *compilation) allocated(e *source.ServiceEntry, host string) []netip.Addr {
	if recorded := recordedAddresses(e, host); len(recorded) > 0 {
		return recorded
	}
	for try := range uint32(tries) {
		n := slot(e, host, try)
		holders := c.view.List(source.KindServiceEntry, "", func(o source.Object) bool {
			r, ok := o.(*source.ServiceEntry)
			return ok && holds(r, e, host, try, n)
		})
		if len(holders) == 0 {
			return []netip.Addr{numbered(allocation4, n), numbered(allocation6, n)}
		}
	}
	return nil
}

func recordedAddresses(e *source.ServiceEntry, host string) []netip.Addr {
	var out []netip.Addr
	for _, a := range e.Addresses {
		if addr, ok := source.ParseAddr(a.Value); ok && a.Host == host {
			out = append(out, addr)
		}
	}
	return out
}

// holds reports whether a host of r comes before e's host, at that try, for the
// n-th address. What is recorded comes first, then everybody's first choice, then
// the other choices; of two alike that of the older entry, or the earlier host.
func holds(r, e *source.ServiceEntry, host string, try uint32, n uint16) bool {
	if !allocates(r) {
		return false
	}
	before := r.Older(&e.Meta)
	if r.Key() == e.Key() {
		before = true // until we meet the host itself
	}
	for _, h := range r.Spec.GetHosts() {
		if r.Key() == e.Key() && h == host {
			before = false
			continue
		}
		recorded := recordedAddresses(r, h)
		switch {
		case slices.Contains(recorded, numbered(allocation4, n)) || slices.Contains(recorded, numbered(allocation6, n)):
			return true
		case len(recorded) > 0:
		case slot(r, h, 0) == n && (before || try > 0):
			return true
		case try > 0 && before && chooses(r, h, n):
			return true
		}
	}
	return false
}

// chooses reports whether an address is among a host's further choices.
func chooses(e *source.ServiceEntry, host string, n uint16) bool {
	for try := uint32(1); try < tries; try++ {
		if slot(e, host, try) == n {
			return true
		}
	}
	return false
}

// slot is which address a host chooses at a try: FNV-1a of the try and its names,
// folded. 0 is none's, and neither is the last.
func slot(e *source.ServiceEntry, host string, try uint32) uint16 {
	const prime = 1099511628211
	h := (uint64(14695981039346656037) ^ uint64(try)) * prime
	for _, part := range [...]string{e.Namespace, e.Name, host} {
		for i := range len(part) {
			h = (h ^ uint64(part[i])) * prime
		}
		h = (h ^ '/') * prime
	}
	return uint16((h^h>>32)%65534) + 1
}

// numbered is the n-th address of a range.
func numbered(p netip.Prefix, n uint16) netip.Addr {
	b := p.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
