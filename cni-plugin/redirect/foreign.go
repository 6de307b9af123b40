package redirect

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Another agent leaves its traces in one of two forms: nftables tables of its
// own, or chains that iptables-nft keeps in the tables it shares with everyone.
const (
	foreignTablePrefix = "istio-ambient-"
	foreignChainPrefix = "ISTIO_"
)

// Foreign names the tables and chains of another ambient mesh's agent in the
// namespace, "inet istio-ambient-nat" or "ip nat ISTIO_OUTPUT". Apply removes
// them. Rules made with iptables-legacy are not visible here.
func Foreign(ns *netns.NS) ([]string, error) {
	c, err := dial(ns)
	if err != nil {
		return nil, err
	}
	tables, chains, err := listForeign(c)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range tables {
		names = append(names, familyName(t.Family)+" "+t.Name)
	}
	for _, ch := range chains {
		names = append(names, familyName(ch.Table.Family)+" "+ch.Table.Name+" "+ch.Name)
	}
	slices.Sort(names)
	return names, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return "other"
}

func listForeign(c *nftables.Conn) (tables []*nftables.Table, chains []*nftables.Chain, err error) {
	all, err := c.ListTables()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range all {
		if strings.HasPrefix(t.Name, foreignTablePrefix) {
			tables = append(tables, t)
		}
	}
	every, err := c.ListChains()
	if err != nil {
		return nil, nil, err
	}
	for _, ch := range every {
		if strings.HasPrefix(ch.Name, foreignChainPrefix) {
			chains = append(chains, ch)
		}
	}
	return tables, chains, nil
}

// removeForeign queues the removal of everything that Foreign finds. A chain can
// go only after all jumps to it, so the jumps go first.
func removeForeign(c *nftables.Conn) error {
	tables, chains, err := listForeign(c)
	if err != nil {
		return err
	}
	for _, t := range tables {
		c.DelTable(t)
	}
	if len(chains) == 0 {
		return nil
	}
	every, err := c.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range every {
		if err := removeJumps(c, ch, chains); err != nil {
			return err
		}
	}
	for _, ch := range chains {
		c.FlushChain(ch)
	}
	for _, ch := range chains {
		c.DelChain(ch)
	}
	return nil
}

// removeJumps queues the removal of ch's rules that jump to one of the targets.
func removeJumps(c *nftables.Conn, ch *nftables.Chain, targets []*nftables.Chain) error {
	if slices.ContainsFunc(targets, func(t *nftables.Chain) bool { return sameChain(t, ch) }) {
		return nil // goes as a whole
	}
	if !slices.ContainsFunc(targets, func(t *nftables.Chain) bool {
		return t.Table.Name == ch.Table.Name && t.Table.Family == ch.Table.Family
	}) {
		return nil
	}
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if slices.ContainsFunc(r.Exprs, isForeignJump) {
			r.Table, r.Chain = ch.Table, ch
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func isForeignJump(e expr.Any) bool {
	v, ok := e.(*expr.Verdict)
	return ok && (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) && strings.HasPrefix(v.Chain, foreignChainPrefix)
}

func sameChain(a, b *nftables.Chain) bool {
	return a.Name == b.Name && a.Table.Name == b.Table.Name && a.Table.Family == b.Table.Family
}
