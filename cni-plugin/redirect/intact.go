package redirect

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Damage says what of a ruleset the namespace does not have, or has otherwise, in
// words; "" when everything is as Apply left it. Rules of others, in other tables,
// do not count. Apply repairs.
func Damage(ns *netns.NS, rs Ruleset) (string, error) {
	c, err := dial(ns)
	if err != nil {
		return "", fmt.Errorf("redirect: look at %s: %w", ns.ID(), err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("redirect: list chains of %s: %w", ns.ID(), err)
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != TableName })
	if what, err := rs.differs(c, chains); what != "" || err != nil {
		return what, err
	}
	what := ""
	err = ns.Do(func() error { what, err = rs.routingDamage(); return err })
	if err != nil {
		return "", fmt.Errorf("redirect: look at routing of %s: %w", ns.ID(), err)
	}
	return what, nil
}

// differs compares the chains of our table with the ruleset's.
func (rs Ruleset) differs(c *nftables.Conn, chains []*nftables.Chain) (string, error) {
	if len(chains) == 0 {
		return "the table is gone", nil
	}
	for _, want := range rs.Chains {
		i := slices.IndexFunc(chains, func(ch *nftables.Chain) bool { return ch.Name == want.Name })
		if i < 0 {
			return "chain " + want.Name + " is gone", nil
		}
		rules, err := c.GetRules(chains[i].Table, chains[i])
		if err != nil {
			return "", fmt.Errorf("redirect: list rules of chain %s: %w", want.Name, err)
		}
		if len(rules) != len(want.Rules) {
			return fmt.Sprintf("chain %s has %d rules instead of %d", want.Name, len(rules), len(want.Rules)), nil
		}
		for n, r := range want.Rules {
			if !sameExprs(r.exprs(), rules[n].Exprs) {
				return fmt.Sprintf("rule %d of chain %s is another one", n+1, want.Name), nil
			}
		}
	}
	if len(chains) > len(rs.Chains) {
		return "the table has chains that are not ours", nil
	}
	return "", nil
}

// sameExprs compares expressions in the form in which the kernel gets them.
func sameExprs(a, b []expr.Any) bool {
	return slices.EqualFunc(a, b, func(x, y expr.Any) bool {
		left, err := expr.Marshal(byte(nftables.TableFamilyINet), alike(x))
		if err != nil {
			return false
		}
		right, err := expr.Marshal(byte(nftables.TableFamilyINet), alike(y))
		return err == nil && bytes.Equal(left, right)
	})
}

// alike leaves out what the kernel, or the library when it reads, tells
// otherwise than it was told: a redirect to one port becomes one to a range of
// one, and the register that a connection's mark or zone comes from is not read.
func alike(e expr.Any) expr.Any {
	switch v := e.(type) {
	case *expr.Redir:
		same := *v
		same.RegisterProtoMax = same.RegisterProtoMin
		return &same
	case *expr.Ct:
		return &expr.Ct{Key: v.Key, Direction: v.Direction}
	}
	return e
}

// routingDamage runs inside the namespace.
func (rs Ruleset) routingDamage() (string, error) {
	for _, f := range []struct {
		on     bool
		family int
		name   string
	}{{rs.Route4, netlink.FAMILY_V4, "IPv4"}, {rs.Route6, netlink.FAMILY_V6, "IPv6"}} {
		if !f.on {
			continue
		}
		what, err := familyDamage(f.family)
		switch {
		case err != nil && f.family == netlink.FAMILY_V6 && withoutIPv6(err):
		case err != nil:
			return "", err
		case what == "":
		case f.family == netlink.FAMILY_V6 && !mayRoute6():
		default:
			return "the " + f.name + " " + what + " is gone", nil
		}
	}
	return "", nil
}

func familyDamage(family int) (string, error) {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: RouteTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL }) {
		return fmt.Sprintf("route of table %d", RouteTable), nil
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == RouteTable && r.Mark == mesh.MarkInbound }) {
		return fmt.Sprintf("rule for mark %#x", mesh.MarkInbound), nil
	}
	return "", nil
}

// mayRoute6 reports whether the loopback has IPv6: without it there is no route.
func mayRoute6() bool {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	return err == nil && len(addrs) > 0
}
