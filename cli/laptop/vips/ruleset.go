// Package vips makes services' virtual addresses work on a node of the laptop
// cluster: connections to one go to one of its ready endpoints, chosen at random,
// and are refused when it has none. It is what kube-proxy does on a cluster.
//
//	pod ──▶ 10.96.1.0:80 ──prerouting──▶ 10.244.1.5:8080   (1 of n, at random)
//	pod ──▶ 10.96.1.1:80 ──forward─────▶ refused           (no endpoint)
//
// Pods in the mesh never come here: their ztunnel chooses the endpoint.
//
// A Ruleset is a value, and Text is its golden form. Apply replaces what a
// namespace has in one transaction: no packet ever sees half of it, and
// connections that were translated before keep their endpoint.
package vips

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Protocol of a port, by its IP protocol number.
type Protocol uint8

// Protocols that services have.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Service is one virtual address and port, and what stands behind it.
type Service struct {
	Name      string // for people
	Addr      netip.AddrPort
	Protocol  Protocol
	Endpoints []netip.AddrPort // of the family of Addr; none = refused
}

// Ruleset is everything that a node does for virtual addresses.
type Ruleset struct {
	Ranges   []netip.Prefix // all virtual addresses: what is not in Services is refused
	Services []Service
}

// Normal returns the ruleset in its one canonical order.
func (r Ruleset) Normal() Ruleset {
	out := Ruleset{Ranges: slices.Clone(r.Ranges)}
	for _, s := range r.Services {
		s.Endpoints = slices.Clone(s.Endpoints)
		slices.SortFunc(s.Endpoints, netip.AddrPort.Compare)
		s.Endpoints = slices.Compact(s.Endpoints)
		out.Services = append(out.Services, s)
	}
	slices.SortFunc(out.Services, func(a, b Service) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Text renders the ruleset for people and for comparison.
func (r Ruleset) Text() string {
	var b strings.Builder
	for _, s := range r.Services {
		fmt.Fprintf(&b, "%s %s/%s ->", s.Name, s.Addr, s.Protocol)
		if len(s.Endpoints) == 0 {
			b.WriteString(" refused")
		}
		for _, e := range s.Endpoints {
			b.WriteString(" " + e.String())
		}
		b.WriteByte('\n')
	}
	for _, p := range r.Ranges {
		fmt.Fprintf(&b, "other %s -> refused\n", p)
	}
	return b.String()
}
