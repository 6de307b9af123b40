package proxy

import (
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// TestExplainAgreesWithConnections: what is said about an imagined connection is
// what a real one meets.
func TestExplainAgreesWithConnections(t *testing.T) {
	g := newGuarded(t)
	deny := &mesh.Policy{
		Name: mesh.PolicyName{Namespace: "shop", Name: "no"}, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "stranger"}}}}}}}},
	}
	for _, c := range []struct {
		what  string
		named []mesh.PolicyName
		sent  []*mesh.Policy
	}{
		{"no policy", nil, nil},
		{"a policy that denies", []mesh.PolicyName{deny.Name}, []*mesh.Policy{deny}},
		{"and one that has not come", []mesh.PolicyName{deny.Name, {Namespace: "shop", Name: "late"}}, []*mesh.Policy{deny}},
	} {
		g.apply(c.named, c.sent...)
		if g.Self() != g.self(t) {
			t.Errorf("%s: a connection would be served as %v, not %v", c.what, g.self(t), g.Self())
		}
		for _, id := range []mesh.Identity{friend, stranger, {}} {
			as := authz.Connection{Source: netip.MustParseAddr("10.0.0.1"), Identity: id, Destination: netip.MustParseAddrPort("10.0.0.7:5432")}
			said, met := g.Explain(g.Self(), as), g.evaluate(g.self(t), as)
			if said.Allow != met.Allow || said.Reason != met.Reason || said.Policy != met.Policy {
				t.Errorf("%s, %s: said %+v, met %+v", c.what, id, said.Verdict, met)
			}
			if met.Reason == reason.DeniedByPolicy && (len(said.Policies) != 1 || !said.Policies[0].Decides) {
				t.Errorf("%s, %s: which policy decides is not said: %+v", c.what, id, said.Policies)
			}
		}
	}
}
