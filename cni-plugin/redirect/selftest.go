package redirect

import (
	"fmt"

	"github.com/google/nftables"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// feature is one ability of the kernel that the rules need.
type feature struct {
	name   string
	config string // the kernel's build option or module
	try    Ruleset
}

func features() []feature {
	rule := func(a Action, ms ...Match) []Rule { return []Rule{{ms, a}} }
	chain := func(typ, hook string, priority int, rules []Rule) Ruleset {
		return Ruleset{Chains: []Chain{{Name: "try", Type: typ, Hook: hook, Priority: priority, Rules: rules}}}
	}
	return []feature{
		{"nftables tables of family inet", "CONFIG_NF_TABLES_INET", Ruleset{}},
		{"nftables filter chains", "CONFIG_NF_TABLES_INET", chain("filter", "prerouting", -150, rule(accept(), isTCP(), firstSegment()))},
		{"nftables route chains", "CONFIG_NF_TABLES_INET", chain("route", "output", -150, nil)},
		{"connection tracking marks", "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK", chain("filter", "prerouting", -150, rule(setConnMark(1)))},
		{"connection tracking zones", "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_ZONES", chain("filter", "output", -300, rule(setZone(DNSZone)))},
		{"nftables NAT chains", "CONFIG_NFT_NAT", chain("nat", "output", -100, nil)},
		{"nftables redirect", "CONFIG_NFT_REDIR", chain("nat", "output", -100, rule(redirectTo(1), isTCP()))},
		{"policy routing by mark", "CONFIG_IP_MULTIPLE_TABLES", Ruleset{Route4: true}},
	}
}

// SelfTest tries, in a throw-away namespace, everything that rules may need, and
// names what the kernel lacks. Settings are written through proc, as Options.Proc.
func SelfTest(proc string) error {
	ns, err := netns.NewUnnamed()
	if err != nil {
		return reason.New(reason.Unsupported, "self-test", "network namespaces", err)
	}
	defer ns.Close()
	for _, f := range features() {
		if err := try(ns, f.try); err != nil {
			return reason.Newf(reason.Unsupported, "self-test", f.name, "this kernel lacks it (%s): %w", f.config, err)
		}
	}
	if err := Apply(ns, Pod(Options{DNSCapture: true, IPv6: true, ProbeSNAT: true, Proc: proc})); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

func try(ns *netns.NS, rs Ruleset) error {
	if err := ns.Do(rs.addRouting); err != nil {
		return err
	}
	return transact(ns, func(c *nftables.Conn) error { rs.add(c); return nil })
}
