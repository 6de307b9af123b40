package authz

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
)

// TestCases runs testdata/*.txtar. A file holds policies (policies.yaml, the form
// of LOCAL_XDS_PATH), connections (one per line: identity or "-", source,
// destination; a word "missing" names a policy that has not come) and the wanted
// verdicts, line by line.
func TestCases(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		c.Want(t, "verdicts", runCase(t, c.Section(t, "policies.yaml"), string(c.Section(t, "connections"))))
	})
}

func runCase(t *testing.T, policies []byte, connections string) string {
	t.Helper()
	_, _, list, err := localxds.Parse(policies)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(connections) {
		fields := strings.Fields(line)
		var missing []mesh.PolicyName
		if len(fields) == 4 && fields[3] == "missing" {
			missing = append(missing, mesh.PolicyName{Namespace: "shop", Name: "late"})
		}
		v := Allowed(list, missing, connection(t, fields))
		fmt.Fprintf(&out, "%s\n", describe(v))
	}
	return out.String()
}

func connection(t *testing.T, fields []string) Connection {
	t.Helper()
	c := Connection{Source: netip.MustParseAddr(fields[1]), Destination: netip.MustParseAddrPort(fields[2])}
	if fields[0] != "-" {
		id, err := mesh.ParseIdentity("spiffe://" + fields[0])
		if err != nil {
			t.Fatal(err)
		}
		c.Identity = id
	}
	return c
}

func describe(v Verdict) string {
	s := "allowed"
	if err := v.Err(); err != nil {
		s = "denied: " + err.Error()
	} else if v.Policy != (mesh.PolicyName{}) {
		s += " by " + v.Policy.String()
	}
	for _, name := range v.DryRun {
		s += ", dry run " + name.String()
	}
	return s
}

func TestReasons(t *testing.T) {
	t.Parallel()
	for _, r := range []reason.Reason{reason.DeniedByPolicy, reason.DeniedByDefault, reason.DeniedPolicyAbsent} {
		err := Verdict{Reason: r}.Err()
		if got := reason.Of(err); got != r {
			t.Errorf("reason of %v = %q, want %q", err, got, r)
		}
		if got := reason.Of(err).Flag(); got != "DENY" {
			t.Errorf("flag of %v = %q", err, got)
		}
	}
	var named interface{ Policy() mesh.PolicyName }
	name := mesh.PolicyName{Namespace: "shop", Name: "no"}
	err := reason.New(reason.PolicyChanged, "relay", "", Verdict{Reason: reason.DeniedByPolicy, Policy: name}.Err())
	if !errors.As(err, &named) || named.Policy() != name {
		t.Errorf("%v does not name its policy", err)
	}
	if err := (Verdict{Allow: true}).Err(); err != nil {
		t.Errorf("allowed, yet %v", err)
	}
}

// draw makes random policies and connections over few values, so that they meet.
type draw struct{ *rand.Rand }

func (r draw) pick(values ...string) string { return values[r.IntN(len(values))] }

func (r draw) strings(values ...string) (out []mesh.StringMatch) {
	if r.IntN(3) > 0 {
		return nil
	}
	for range 1 + r.IntN(2) {
		v := r.pick(values...)
		m := mesh.StringMatch{Kind: mesh.StringMatchKind(r.IntN(4)), Value: v}
		switch m.Kind {
		case mesh.MatchPrefix:
			m.Value = v[:r.IntN(len(v)+1)]
		case mesh.MatchSuffix:
			m.Value = v[r.IntN(len(v)+1):]
		case mesh.MatchPresence:
			m.Value = ""
		}
		out = append(out, m)
	}
	return out
}

func (r draw) prefixes() (out []netip.Prefix) {
	if r.IntN(4) > 0 {
		return nil
	}
	return append(out, netip.PrefixFrom(netip.MustParseAddr(r.pick("10.0.0.1", "10.0.0.2", "fd00::1")), r.IntN(33)))
}

func (r draw) ports() (out []uint16) {
	if r.IntN(4) > 0 {
		return nil
	}
	return append(out, uint16(80+r.IntN(2)))
}

func (r draw) accounts() (out []mesh.ServiceAccountMatch) {
	if r.IntN(4) > 0 {
		return nil
	}
	return append(out, mesh.ServiceAccountMatch{Namespace: r.pick("a", "b"), ServiceAccount: r.pick("x", "y")})
}

func (r draw) match() mesh.Match {
	principals := []string{"td/ns/a/sa/x", "td/ns/b/sa/y", "other/ns/a/sa/x"}
	return mesh.Match{
		Namespaces: r.strings("a", "b"), NotNamespaces: r.strings("a", "b"),
		Principals: r.strings(principals...), NotPrincipals: r.strings(principals...),
		ServiceAccounts: r.accounts(), NotServiceAccounts: r.accounts(),
		SourceIPs: r.prefixes(), NotSourceIPs: r.prefixes(),
		DestinationIPs: r.prefixes(), NotDestinationIPs: r.prefixes(),
		DestinationPorts: r.ports(), NotDestinationPorts: r.ports(),
	}
}

func (r draw) policy(i int) *mesh.Policy {
	p := &mesh.Policy{Name: mesh.PolicyName{Namespace: "n", Name: fmt.Sprint(i)}, Action: mesh.Action(r.IntN(2)), DryRun: r.IntN(4) == 0}
	for range r.IntN(3) {
		var rule mesh.Rule
		for range r.IntN(3) {
			var c mesh.Clause
			for range r.IntN(3) {
				c.Matches = append(c.Matches, r.match())
			}
			rule.Clauses = append(rule.Clauses, c)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func (r draw) connection() Connection {
	c := Connection{
		Source:      netip.MustParseAddr(r.pick("10.0.0.1", "10.0.0.2", "fd00::1", "::ffff:10.0.0.1")),
		Destination: netip.AddrPortFrom(netip.MustParseAddr(r.pick("10.0.0.1", "10.0.0.2", "fd00::1")), uint16(80+r.IntN(2))),
	}
	if r.IntN(3) > 0 {
		c.Identity = mesh.Identity{TrustDomain: r.pick("td", "other", strings.Repeat("long.", 60)), Namespace: r.pick("a", "b"), ServiceAccount: r.pick("x", "y")}
	}
	return c
}

func TestAgainstOracle(t *testing.T) {
	t.Parallel()
	r := draw{rand.New(rand.NewPCG(3, 4))}
	outcomes := make(map[reason.Reason]int)
	for range 30_000 {
		var policies []*mesh.Policy
		for i := range r.IntN(5) {
			policies = append(policies, r.policy(i))
		}
		var missing []mesh.PolicyName
		if r.IntN(5) == 0 {
			missing = []mesh.PolicyName{{Namespace: "n", Name: "missing"}}
		}
		c := r.connection()
		got := Allowed(policies, missing, c)
		want, dryRun := oracle(policies, missing, c)
		if got.Reason != want || got.Allow != (want == reason.None) || !slices.Equal(got.DryRun, dryRun) {
			t.Fatalf("connection %+v\npolicies %+v\ngot %+v, want %q, dry run %v", c, policies, got, want, dryRun)
		}
		outcomes[want]++
	}
	for _, r := range []reason.Reason{reason.None, reason.DeniedByPolicy, reason.DeniedByDefault, reason.DeniedPolicyAbsent} {
		if outcomes[r] < 300 {
			t.Errorf("only %d verdicts were %q: the draw is too narrow", outcomes[r], r)
		}
	}
}

// oracle evaluates by the book: it writes the principal out and asks every
// question in full.
func oracle(policies []*mesh.Policy, missing []mesh.PolicyName, c Connection) (reason.Reason, []mesh.PolicyName) {
	var denies, allows, matchingAllows int
	var dryRun []mesh.PolicyName
	for _, p := range policies {
		matching := slices.ContainsFunc(p.Rules, func(r mesh.Rule) bool {
			return !slices.ContainsFunc(r.Clauses, func(cl mesh.Clause) bool { return !oracleClause(cl, c) })
		})
		switch {
		case p.DryRun && matching:
			dryRun = append(dryRun, p.Name)
		case p.DryRun:
		case p.Action == mesh.Deny && matching:
			denies++
		case p.Action == mesh.Allow:
			allows++
			if matching {
				matchingAllows++
			}
		}
	}
	switch {
	case denies > 0:
		return reason.DeniedByPolicy, dryRun
	case len(missing) > 0:
		return reason.DeniedPolicyAbsent, dryRun
	case allows > 0 && matchingAllows == 0:
		return reason.DeniedByDefault, dryRun
	}
	return reason.None, dryRun
}

func oracleClause(cl mesh.Clause, c Connection) bool {
	if len(cl.Matches) == 0 {
		return true
	}
	for _, m := range cl.Matches {
		if fmt.Sprintf("%v", m) == fmt.Sprintf("%v", mesh.Match{}) {
			continue
		}
		if oracleMatch(m, c) {
			return true
		}
	}
	return false
}

func oracleMatch(m mesh.Match, c Connection) bool {
	field := func(positive, negative int, hitPositive, hitNegative bool) bool {
		return (positive == 0 || hitPositive) && (negative == 0 || !hitNegative)
	}
	text := func(list []mesh.StringMatch, v string) bool {
		return slices.ContainsFunc(list, func(s mesh.StringMatch) bool {
			return s.Kind == mesh.MatchExact && v == s.Value || s.Kind == mesh.MatchPrefix && strings.HasPrefix(v, s.Value) ||
				s.Kind == mesh.MatchSuffix && strings.HasSuffix(v, s.Value) || s.Kind == mesh.MatchPresence && v != ""
		})
	}
	principal := func(list []mesh.StringMatch) bool {
		return !c.Identity.IsZero() && text(list, c.Identity.Principal())
	}
	account := func(list []mesh.ServiceAccountMatch) bool {
		return slices.Contains(list, mesh.ServiceAccountMatch{Namespace: c.Identity.Namespace, ServiceAccount: c.Identity.ServiceAccount})
	}
	in := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
	}
	port, dst := c.Destination.Port(), c.Destination.Addr()
	return field(len(m.Namespaces), len(m.NotNamespaces), text(m.Namespaces, c.Identity.Namespace), text(m.NotNamespaces, c.Identity.Namespace)) &&
		field(len(m.Principals), len(m.NotPrincipals), principal(m.Principals), principal(m.NotPrincipals)) &&
		field(len(m.ServiceAccounts), len(m.NotServiceAccounts), account(m.ServiceAccounts), account(m.NotServiceAccounts)) &&
		field(len(m.SourceIPs), len(m.NotSourceIPs), in(m.SourceIPs, c.Source), in(m.NotSourceIPs, c.Source)) &&
		field(len(m.DestinationIPs), len(m.NotDestinationIPs), in(m.DestinationIPs, dst), in(m.NotDestinationIPs, dst)) &&
		field(len(m.DestinationPorts), len(m.NotDestinationPorts), slices.Contains(m.DestinationPorts, port), slices.Contains(m.NotDestinationPorts, port))
}

// thousand policies deny other principals; the last allows.
func thousand() ([]*mesh.Policy, Connection) {
	c := Connection{
		Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:80"),
		Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "front"},
	}
	var policies []*mesh.Policy
	for i := range 1000 {
		p := &mesh.Policy{Name: mesh.PolicyName{Namespace: "shop", Name: fmt.Sprint("p", i)}, Action: mesh.Deny}
		value := fmt.Sprintf("cluster.local/ns/shop/sa/other-%d", i)
		if i == 999 {
			p.Action, value = mesh.Allow, c.Identity.Principal()
		}
		p.Rules = []mesh.Rule{{Clauses: []mesh.Clause{
			{Matches: []mesh.Match{{DestinationPorts: []uint16{80}}}},
			{Matches: []mesh.Match{{Principals: []mesh.StringMatch{{Value: value}}}}},
		}}}
		policies = append(policies, p)
	}
	return policies, c
}

func TestAllowingDoesNotAllocate(t *testing.T) {
	policies, c := thousand()
	if n := testing.AllocsPerRun(100, func() {
		if !Allowed(policies, nil, c).Allow {
			t.Error("denied")
		}
	}); n != 0 {
		t.Errorf("allowing allocates %v times", n)
	}
}

func BenchmarkAllowed(b *testing.B) {
	policies, c := thousand()
	for _, n := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			list := policies[len(policies)-n:]
			for b.Loop() {
				if !Allowed(list, nil, c).Allow {
					b.Fatal("denied")
				}
			}
		})
	}
}
