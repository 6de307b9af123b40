package redirect

import (
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// A pod that another agent enrolled, with nftables or with iptables-nft, has only
// our rules afterwards, and keeps what belongs to neither.
func TestApplyReplacesForeignRules(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	err := transact(ns, func(c *nftables.Conn) error {
		own := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "istio-ambient-nat"})
		c.AddChain(&nftables.Chain{Table: own, Name: "istio-output"})
		shared := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
		out := c.AddChain(&nftables.Chain{Table: shared, Name: "OUTPUT", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
		c.AddChain(&nftables.Chain{Table: shared, Name: "KEEP"})
		foreign := c.AddChain(&nftables.Chain{Table: shared, Name: "ISTIO_OUTPUT"})
		c.AddRule(&nftables.Rule{Table: shared, Chain: foreign, Exprs: redirectTo(15001).exprsAfter(isTCP())})
		c.AddRule(&nftables.Rule{Table: shared, Chain: out, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "KEEP"}}})
		c.AddRule(&nftables.Rule{Table: shared, Chain: out, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "ISTIO_OUTPUT"}}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	names, err := Foreign(ns)
	if want := []string{"inet istio-ambient-nat", "ip nat ISTIO_OUTPUT"}; err != nil || !slices.Equal(names, want) {
		t.Fatalf("foreign rules: %q, %v, want %q", names, err, want)
	}
	apply(t, ns, Pod(Options{IPv6: true}))
	if names, err := Foreign(ns); err != nil || len(names) != 0 {
		t.Errorf("foreign rules after Apply: %q, %v", names, err)
	}
	c, err := dial(ns)
	if err != nil {
		t.Fatal(err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, ch := range chains {
		left = append(left, ch.Name)
	}
	slices.Sort(left)
	if want := []string{"KEEP", "OUTPUT"}; !slices.Equal(left, want) {
		t.Errorf("chains left in the shared table: %q, want %q", left, want)
	}
}

func (a Action) exprsAfter(m Match) []expr.Any {
	return Rule{[]Match{m}, a}.exprs()
}
