package authz

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
)

// TestExplainCases holds what is said about the policies of
// testdata/explain/*.txtar, whose form is that of TestCases.
func TestExplainCases(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/explain/*.txtar", func(t *testing.T, c *golden.Case) {
		_, _, list, err := localxds.Parse(c.Section(t, "policies.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for line := range strings.Lines(string(c.Section(t, "connections"))) {
			e := Explain(list, nil, connection(t, strings.Fields(line)))
			out.WriteString(describe(e.Verdict) + "\n")
			for _, p := range e.Policies {
				out.WriteString("  " + p.Policy.Name.String())
				if p.Decides {
					out.WriteString(" decides")
				}
				out.WriteString("\n    " + strings.Join(p.Rules, "\n    ") + "\n")
			}
		}
		c.Want(t, "explained", out.String())
	})
}

// TestExplainAgrees holds that what is said of each policy amounts to the verdict.
func TestExplainAgrees(t *testing.T) {
	t.Parallel()
	r := draw{rand.New(rand.NewPCG(5, 6))}
	for range 10_000 {
		var policies []*mesh.Policy
		for i := range r.IntN(5) {
			policies = append(policies, r.policy(i))
		}
		c := r.connection()
		e, v := Explain(policies, nil, c), Allowed(policies, nil, c)
		if e.Allow != v.Allow || e.Reason != v.Reason || e.Policy != v.Policy {
			t.Fatalf("explained %+v, allowed %+v", e.Verdict, v)
		}
		if len(e.Policies) != len(policies) {
			t.Fatalf("%d of %d policies are explained", len(e.Policies), len(policies))
		}
		deciding := 0
		for _, p := range e.Policies {
			said := false
			for _, line := range p.Rules {
				_, text, _ := strings.Cut(line, ": ")
				said = said || text == "matches" || text == "matches everything"
			}
			if said != p.Matches {
				t.Fatalf("policy %+v: matches is %v, but %q", p.Policy, p.Matches, p.Rules)
			}
			if p.Decides {
				deciding++
			}
		}
		if want := v.Policy != (mesh.PolicyName{}); want != (deciding == 1) {
			t.Fatalf("%d policies decide, the verdict's is %q", deciding, v.Policy)
		}
	}
}
