package netpolicy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Policy is a NetworkPolicy of the namespace at hand.
type Policy struct {
	Name string
	Spec *networkingv1.NetworkPolicySpec
}

// Set is the policies that isolate a pod from its callers, by name, with what the
// pod's containers call the ports that they name.
//
// Policies add up: a connection may pass when any rule of any of them allows it. A
// mesh.Policy that denies is the other way round, and denials of several are
// independent. So there is one for the set, not one for each policy, and it denies
// where no rule allows:
//
//	rule 1 allows ports A to peers X       matches when   it came through a tunnel
//	rule 2 allows ports B to peers Y                and   port not in A or peer not in X
//	                                                and   port not in B or peer not in Y
//	                                                and   it is not the pod's call to itself
//
// Being a denial it is independent of what AuthorizationPolicies allow. What comes
// past the tunnel the network has judged by its real port itself.
type Set struct {
	Policies []Policy
	ports    map[string][]uint16
}

// NewSet returns the set of those policies that isolate a pod with these labels.
// named returns the TCP ports that its containers call by a name.
func NewSet(policies []Policy, of map[string]string, named func(string) []uint16) Set {
	s := Set{ports: map[string][]uint16{}}
	for _, p := range policies {
		if Isolates(p.Spec) && SelectorOf(&p.Spec.PodSelector).Matches(of) {
			s.Policies = append(s.Policies, p)
		}
	}
	slices.SortFunc(s.Policies, func(a, b Policy) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range s.rules() {
		for _, p := range r.ports {
			if tcp(p) && p.Port != nil && p.Port.StrVal != "" {
				ports := slices.Clone(named(p.Port.StrVal))
				slices.Sort(ports)
				s.ports[p.Port.StrVal] = slices.Compact(ports)
			}
		}
	}
	return s
}

// Isolates reports whether a policy says anything about callers.
func Isolates(s *networkingv1.NetworkPolicySpec) bool {
	return about(&networkingv1.NetworkPolicy{Spec: *s}, Ingress)
}

// Name is the set's own: two pods with equal names are under equal policies.
func (s Set) Name() string {
	var names []string
	for _, p := range s.Policies {
		names = append(names, p.Name)
	}
	name := mesh.NetworkPolicyPrefix + strings.Join(names, ",")
	var used []string
	for port, numbers := range s.ports {
		var list []string
		for _, n := range numbers {
			list = append(list, strconv.Itoa(int(n)))
		}
		used = append(used, ";"+port+"="+strings.Join(list, "+"))
	}
	slices.Sort(used)
	return name + strings.Join(used, "")
}

// Open reports whether the set denies nothing, whatever pods there are.
func (s Set) Open() bool {
	return len(s.Policies) == 0 || slices.ContainsFunc(s.rules(), func(r rule) bool {
		return len(r.peers) == 0 && s.portsOf(r).all
	})
}

func (s Set) rules() (all []rule) {
	for _, p := range s.Policies {
		for _, in := range p.Spec.Ingress {
			all = append(all, rule{ports: in.Ports, peers: in.From})
		}
	}
	return all
}

// Selector is a compiled selector of labels.
type Selector struct{ labels.Selector }

// SelectorOf compiles a selector; nil selects everything. One that is malformed
// selects nothing: the API server does not take such.
func SelectorOf(s *metav1.LabelSelector) Selector {
	if s == nil {
		return Selector{labels.Everything()}
	}
	compiled, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return Selector{labels.Nothing()}
	}
	return Selector{compiled}
}

// Matches reports whether labels are selected.
func (s Selector) Matches(of map[string]string) bool { return s.Selector.Matches(labels.Set(of)) }

// Own, as the namespace of Peers.Pods, is the policy's.
var Own *Selector

// Peers knows who callers are.
type Peers interface {
	// Namespaces returns the names of the namespaces that a selector selects; of the
	// policy's own for Own.
	Namespaces(*Selector) []string
	// Principals returns the beginning of the identities of all of a namespace's pods.
	Principals(namespace string) string
	// Addresses returns the addresses of the pods of a namespace that a selector
	// selects.
	Addresses(namespace string, pods Selector) []netip.Addr
}

// Deny returns the rule that matches what the set does not allow to pods with the
// addresses of self. The set must not be open.
//
// Callers are known by address, as they are to the network; those of whole
// namespaces by the identities of their tunnels, so that a new pod there changes
// nothing.
func (s Set) Deny(peers Peers, self []netip.Addr) mesh.Rule {
	out := mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{{Principals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}}}}}}
	for _, r := range s.rules() {
		if matches := s.denied(r, peers); len(matches) > 0 {
			out.Clauses = append(out.Clauses, mesh.Clause{Matches: matches})
		}
	}
	for _, ip := range self {
		itself := []netip.Prefix{netip.PrefixFrom(ip, ip.BitLen())}
		out.Clauses = append(out.Clauses, mesh.Clause{Matches: []mesh.Match{{NotSourceIPs: itself}, {NotDestinationIPs: itself}}})
	}
	return out
}

// denied returns what of a connection keeps a rule from allowing it: one of the
// matches does. A rule that allows nobody returns none: it keeps nothing from being
// denied.
func (s Set) denied(r rule, peers Peers) (matches []mesh.Match) {
	ports := s.portsOf(r)
	if ports.none() {
		return nil
	}
	if !ports.all {
		matches = append(matches, ports.other())
	}
	if len(r.peers) == 0 {
		return matches
	}
	other := strangers(r.peers, peers)
	if len(other.NotSourceIPs)+len(other.NotPrincipals) == 0 {
		return nil
	}
	return append(matches, other)
}

// strangers matches everybody but the peers.
func strangers(list []networkingv1.NetworkPolicyPeer, peers Peers) (m mesh.Match) {
	var prefixes []netip.Prefix
	var principals []string
	for _, p := range list {
		if p.IPBlock != nil {
			prefixes = append(prefixes, blockPrefixes(p.IPBlock)...)
			continue
		}
		where := Own
		if p.NamespaceSelector != nil {
			s := SelectorOf(p.NamespaceSelector)
			where = &s
		}
		who := SelectorOf(p.PodSelector)
		for _, ns := range peers.Namespaces(where) {
			if who.Empty() {
				principals = append(principals, peers.Principals(ns))
				continue
			}
			for _, ip := range peers.Addresses(ns, who) {
				prefixes = append(prefixes, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	m.NotSourceIPs = slices.Compact(prefixes)
	slices.Sort(principals)
	for _, p := range slices.Compact(principals) {
		m.NotPrincipals = append(m.NotPrincipals, mesh.StringMatch{Kind: mesh.MatchPrefix, Value: p})
	}
	return m
}

// blockPrefixes are a block without its exceptions.
func blockPrefixes(b *networkingv1.IPBlock) []netip.Prefix {
	block, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return nil
	}
	var except []netip.Prefix
	for _, text := range b.Except {
		if p, err := netip.ParsePrefix(text); err == nil {
			except = append(except, p.Masked())
		}
	}
	return without(block.Masked(), except)
}

// without returns the prefixes that make up p without those in except. It halves p
// as long as one of them is a part of it.
func without(p netip.Prefix, except []netip.Prefix) []netip.Prefix {
	part := false
	for _, e := range except {
		switch {
		case !e.Overlaps(p):
		case e.Bits() <= p.Bits():
			return nil
		default:
			part = true
		}
	}
	if !part {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(without(low, except), without(high, except)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bytes, bits := p.Addr().AsSlice(), p.Bits()
	bytes[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}
