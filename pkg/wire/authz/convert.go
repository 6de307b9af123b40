// Package authz is the wire form of layer 4 authorization policies and its
// conversion to mesh.Policy.
//
//	istio.security.Authorization ── ToMesh ──► mesh.Policy
//	                             ◄─ FromMesh ─
//
// The messages are generated from authorization.proto. Conversions are pure and
// safe for concurrent use; a converted value shares no memory with its source
// except for strings.
package authz

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TypeURL names Authorization resources on the wire.
const TypeURL = "type.googleapis.com/istio.security.Authorization"

// ToMesh converts a policy that came from the wire. The error names the field
// and the reason. Addresses that are no address range are dropped when they stand
// beside others, as every implementation does; one that leaves its list empty is
// an error, because an empty list would match everything.
func ToMesh(a *Authorization) (*mesh.Policy, error) {
	p := &mesh.Policy{
		Name:   mesh.PolicyName{Namespace: a.GetNamespace(), Name: a.GetName()},
		DryRun: a.GetDryRun(),
	}
	switch a.GetScope() {
	case Scope_GLOBAL:
		p.Scope = mesh.ScopeGlobal
	case Scope_NAMESPACE:
		p.Scope = mesh.ScopeNamespace
	case Scope_WORKLOAD_SELECTOR:
		p.Scope = mesh.ScopeWorkloadSelector
	default:
		return nil, fmt.Errorf("scope: unknown value %d", a.GetScope())
	}
	switch a.GetAction() {
	case Action_ALLOW:
		p.Action = mesh.Allow
	case Action_DENY:
		p.Action = mesh.Deny
	default:
		return nil, fmt.Errorf("action: unknown value %d", a.GetAction())
	}
	for i, r := range a.GetRules() {
		rule, err := toRule(r)
		if err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

func toRule(r *Rule) (mesh.Rule, error) {
	var out mesh.Rule
	for i, c := range r.GetClauses() {
		var clause mesh.Clause
		for j, m := range c.GetMatches() {
			match, err := toMatch(m)
			if err != nil {
				return out, fmt.Errorf("clauses[%d].matches[%d].%w", i, j, err)
			}
			clause.Matches = append(clause.Matches, match)
		}
		out.Clauses = append(out.Clauses, clause)
	}
	return out, nil
}

func toMatch(m *Match) (out mesh.Match, err error) {
	strings := func(field string, in []*StringMatch) (list []mesh.StringMatch) {
		if err == nil {
			list, err = toStrings(field, in)
		}
		return list
	}
	addrs := func(field string, in []*Address) (list []netip.Prefix) {
		if err == nil {
			list, err = toPrefixes(field, in)
		}
		return list
	}
	ports := func(field string, in []uint32) (list []uint16) {
		if err == nil {
			list, err = toPorts(field, in)
		}
		return list
	}
	out = mesh.Match{
		Namespaces:          strings("namespaces", m.GetNamespaces()),
		NotNamespaces:       strings("not_namespaces", m.GetNotNamespaces()),
		Principals:          strings("principals", m.GetPrincipals()),
		NotPrincipals:       strings("not_principals", m.GetNotPrincipals()),
		ServiceAccounts:     toServiceAccounts(m.GetServiceAccounts()),
		NotServiceAccounts:  toServiceAccounts(m.GetNotServiceAccounts()),
		SourceIPs:           addrs("source_ips", m.GetSourceIps()),
		NotSourceIPs:        addrs("not_source_ips", m.GetNotSourceIps()),
		DestinationIPs:      addrs("destination_ips", m.GetDestinationIps()),
		NotDestinationIPs:   addrs("not_destination_ips", m.GetNotDestinationIps()),
		DestinationPorts:    ports("destination_ports", m.GetDestinationPorts()),
		NotDestinationPorts: ports("not_destination_ports", m.GetNotDestinationPorts()),
	}
	return out, err
}

func toStrings(field string, in []*StringMatch) ([]mesh.StringMatch, error) {
	var out []mesh.StringMatch
	for i, s := range in {
		switch m := s.GetMatchType().(type) {
		case *StringMatch_Exact:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchExact, Value: m.Exact})
		case *StringMatch_Prefix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPrefix, Value: m.Prefix})
		case *StringMatch_Suffix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchSuffix, Value: m.Suffix})
		case *StringMatch_Presence:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPresence})
		default:
			return nil, fmt.Errorf("%s[%d]: no kind of match is set", field, i)
		}
	}
	return out, nil
}

func toServiceAccounts(in []*ServiceAccountMatch) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, s := range in {
		out = append(out, mesh.ServiceAccountMatch{Namespace: s.GetNamespace(), ServiceAccount: s.GetServiceAccount()})
	}
	return out
}

func toPrefixes(field string, in []*Address) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var first error
	for i, a := range in {
		p, err := toPrefix(a)
		if err != nil {
			if first == nil {
				first = fmt.Errorf("%s[%d]: %w", field, i, err)
			}
			continue
		}
		out = append(out, p)
	}
	if len(out) == 0 && first != nil {
		return nil, first
	}
	return out, nil
}

func toPrefix(a *Address) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address has %d bytes, want 4 or 16", len(a.GetAddress()))
	}
	if a.GetLength() > uint32(addr.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("length %d is more than the address has bits, %d", a.GetLength(), addr.BitLen())
	}
	bits := int(a.GetLength())
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, bits), nil
}

func toPorts(field string, in []uint32) ([]uint16, error) {
	var out []uint16
	for i, p := range in {
		if p > 65535 {
			return nil, fmt.Errorf("%s[%d]: %d is no port", field, i, p)
		}
		out = append(out, uint16(p))
	}
	return out, nil
}

// FromMesh converts a policy for the wire.
func FromMesh(p *mesh.Policy) *Authorization {
	a := &Authorization{
		Name:      p.Name.Name,
		Namespace: p.Name.Namespace,
		Scope:     Scope(p.Scope),
		Action:    Action(p.Action),
		DryRun:    p.DryRun,
	}
	for _, r := range p.Rules {
		rule := &Rule{}
		for _, c := range r.Clauses {
			clause := &Clause{}
			for _, m := range c.Matches {
				clause.Matches = append(clause.Matches, fromMatch(m))
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		a.Rules = append(a.Rules, rule)
	}
	return a
}

func fromMatch(m mesh.Match) *Match {
	return &Match{
		Namespaces:          fromStrings(m.Namespaces),
		NotNamespaces:       fromStrings(m.NotNamespaces),
		Principals:          fromStrings(m.Principals),
		NotPrincipals:       fromStrings(m.NotPrincipals),
		ServiceAccounts:     fromServiceAccounts(m.ServiceAccounts),
		NotServiceAccounts:  fromServiceAccounts(m.NotServiceAccounts),
		SourceIps:           fromPrefixes(m.SourceIPs),
		NotSourceIps:        fromPrefixes(m.NotSourceIPs),
		DestinationIps:      fromPrefixes(m.DestinationIPs),
		NotDestinationIps:   fromPrefixes(m.NotDestinationIPs),
		DestinationPorts:    fromPorts(m.DestinationPorts),
		NotDestinationPorts: fromPorts(m.NotDestinationPorts),
	}
}

func fromStrings(in []mesh.StringMatch) []*StringMatch {
	var out []*StringMatch
	for _, s := range in {
		m := &StringMatch{}
		switch s.Kind {
		case mesh.MatchExact:
			m.MatchType = &StringMatch_Exact{Exact: s.Value}
		case mesh.MatchPrefix:
			m.MatchType = &StringMatch_Prefix{Prefix: s.Value}
		case mesh.MatchSuffix:
			m.MatchType = &StringMatch_Suffix{Suffix: s.Value}
		case mesh.MatchPresence:
			m.MatchType = &StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, m)
	}
	return out
}

func fromServiceAccounts(in []mesh.ServiceAccountMatch) []*ServiceAccountMatch {
	var out []*ServiceAccountMatch
	for _, s := range in {
		out = append(out, &ServiceAccountMatch{Namespace: s.Namespace, ServiceAccount: s.ServiceAccount})
	}
	return out
}

func fromPrefixes(in []netip.Prefix) []*Address {
	var out []*Address
	for _, p := range in {
		out = append(out, &Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func fromPorts(in []uint16) []uint32 {
	var out []uint32
	for _, p := range in {
		out = append(out, uint32(p))
	}
	return out
}
