package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func TestToMeshFull(t *testing.T) {
	t.Parallel()
	got, err := ToMesh(fullAuthorization())
	if err != nil {
		t.Fatal(err)
	}
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	want := &mesh.Policy{
		Name:  mesh.PolicyName{Namespace: "shop", Name: "only-front"},
		Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			Namespaces:          []mesh.StringMatch{{Kind: mesh.MatchExact, Value: "a"}},
			NotNamespaces:       []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: "b"}},
			Principals:          []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: "c"}},
			NotPrincipals:       []mesh.StringMatch{{Kind: mesh.MatchPresence}},
			ServiceAccounts:     []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "front"}},
			NotServiceAccounts:  []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "back"}},
			SourceIPs:           prefixes("10.0.0.0/8"),
			NotSourceIPs:        prefixes("10.1.0.0/16"),
			DestinationIPs:      prefixes("fd00::/8"),
			NotDestinationIPs:   prefixes("10.9.9.9/32"),
			DestinationPorts:    []uint16{80, 8080},
			NotDestinationPorts: []uint16{443},
		}}}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestRejections(t *testing.T) {
	t.Parallel()
	match := func(m *Match) *Authorization {
		return &Authorization{Rules: []*Rule{{}, {Clauses: []*Clause{{Matches: []*Match{m}}}}}}
	}
	for want, a := range map[string]*Authorization{
		"scope: unknown value 7":  {Scope: 7},
		"action: unknown value 2": {Action: 2},
		"rules[1].clauses[0].matches[0].principals[0]: no kind of match is set":                                match(&Match{Principals: []*StringMatch{{}}}),
		"rules[1].clauses[0].matches[0].destination_ports[0]: 70000 is no port":                                match(&Match{DestinationPorts: []uint32{70000}}),
		"rules[1].clauses[0].matches[0].source_ips[0]: address has 3 bytes, want 4 or 16":                      match(&Match{SourceIps: []*Address{{Address: make([]byte, 3)}}}),
		"rules[1].clauses[0].matches[0].not_source_ips[0]: length 33 is more than the address has bits, 32":    match(&Match{NotSourceIps: addresses("10.0.0.0", 33)}),
		"rules[1].clauses[0].matches[0].destination_ips[0]: length 129 is more than the address has bits, 128": match(&Match{DestinationIps: addresses("fd00::", 129)}),
	} {
		if _, err := ToMesh(a); err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
}

// TestMalformedRangesAreDropped, unless nothing is left: an empty list matches
// everything.
func TestMalformedRangesAreDropped(t *testing.T) {
	t.Parallel()
	ips := append([]*Address{{Address: []byte{1}}}, addresses("::ffff:10.0.0.0", 104)...)
	p, err := ToMesh(&Authorization{Rules: []*Rule{{Clauses: []*Clause{{Matches: []*Match{{SourceIps: ips}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Rules[0].Clauses[0].Matches[0].SourceIPs; len(got) != 1 || got[0] != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("source IPs = %v, want the good one, as IPv4", got)
	}
}

// draw makes random policies.
type draw struct{ *rand.Rand }

func (r draw) strings() (out []mesh.StringMatch) {
	for range r.IntN(3) {
		m := mesh.StringMatch{Kind: mesh.StringMatchKind(r.IntN(4))}
		if m.Kind != mesh.MatchPresence {
			m.Value = fmt.Sprint("v", r.IntN(9))
		}
		out = append(out, m)
	}
	return out
}

func (r draw) accounts() (out []mesh.ServiceAccountMatch) {
	for range r.IntN(3) {
		out = append(out, mesh.ServiceAccountMatch{Namespace: fmt.Sprint(r.IntN(9)), ServiceAccount: fmt.Sprint(r.IntN(9))})
	}
	return out
}

func (r draw) prefixes() (out []netip.Prefix) {
	for range r.IntN(3) {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(r.IntN(256)), 2, 3, 4}), r.IntN(33)))
	}
	return out
}

func (r draw) ports() (out []uint16) {
	for range r.IntN(3) {
		out = append(out, uint16(r.IntN(65536)))
	}
	return out
}

func (r draw) policy() *mesh.Policy {
	p := &mesh.Policy{
		Name:  mesh.PolicyName{Namespace: fmt.Sprint(r.IntN(9)), Name: fmt.Sprint(r.IntN(9))},
		Scope: mesh.Scope(r.IntN(3)), Action: mesh.Action(r.IntN(2)), DryRun: r.IntN(2) == 0,
	}
	for range r.IntN(3) {
		var rule mesh.Rule
		for range r.IntN(3) {
			var clause mesh.Clause
			for range r.IntN(3) {
				clause.Matches = append(clause.Matches, mesh.Match{
					Namespaces: r.strings(), NotNamespaces: r.strings(), Principals: r.strings(), NotPrincipals: r.strings(),
					ServiceAccounts: r.accounts(), NotServiceAccounts: r.accounts(),
					SourceIPs: r.prefixes(), NotSourceIPs: r.prefixes(), DestinationIPs: r.prefixes(), NotDestinationIPs: r.prefixes(),
					DestinationPorts: r.ports(), NotDestinationPorts: r.ports(),
				})
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r := draw{rand.New(rand.NewPCG(1, 2))}
	for range 2000 {
		want := r.policy()
		b, err := proto.Marshal(FromMesh(want))
		if err != nil {
			t.Fatal(err)
		}
		var a Authorization
		if err := proto.Unmarshal(b, &a); err != nil {
			t.Fatal(err)
		}
		if got, err := ToMesh(&a); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
	}
}

// FuzzToMesh: what decodes is in normal form, so that encoding and decoding it
// again changes nothing.
func FuzzToMesh(f *testing.F) {
	b, err := proto.Marshal(fullAuthorization())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Authorization
		if proto.Unmarshal(b, &a) != nil {
			return
		}
		p, err := ToMesh(&a)
		if err != nil {
			return
		}
		again, err := ToMesh(FromMesh(p))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("once  %+v\ntwice %+v, %v", p, again, err)
		}
	})
}
