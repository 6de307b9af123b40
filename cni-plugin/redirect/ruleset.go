// Package redirect sends the TCP traffic of a pod through the node's ztunnel, by
// nftables rules in the pod's own network namespace.
//
//	             ┌──────────────────── the pod's namespace ────────────────────┐
//	program ─────┼─▶ output ── redirect ─▶ :15001 ztunnel ═══ mark 0x539 ══════┼═▶ out
//	program ◀────┼── lo ◀── from the client's address, mark 0x539 ── ztunnel ◀─┼── :15008
//	             │                                            ztunnel :15006 ◀─┼── redirect ◀─ plaintext in
//	             └─────────────────────────────────────────────────────────────┘
//
// The rules are a value, made by Pod, that renders as nft syntax and is applied
// in one netlink transaction. Three marks and tables make it work:
//
//   - Every socket that ztunnel opens in the pod carries mark 0x539 and is never
//     redirected again.
//   - ztunnel delivers to the program from the client's own address. Those packets
//     arrive over lo with mark 0x539 and give their connection the conntrack mark
//     0x111; the program's replies take that mark and, by an ip rule and routing
//     table 100, go back over lo to ztunnel instead of out to the client.
//   - Only a connection's first segment is redirected, so connections that are
//     older than the rules go on untouched, and Drain keeps the connections that
//     are younger alive while the pod leaves the mesh.
//
// Functions here may be used concurrently for different namespaces; for one
// namespace the caller lets one end before it starts the next.
package redirect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Numbers of the pod's rules, the same as in every ambient mesh (protocol facts:
// packets are compared under mesh.MarkMask).
const (
	TableName    = "culvert" // nftables table, family inet
	RouteTable   = 100       // routing table that makes every address local
	RulePriority = 32764     // ip rule: fwmark 0x111/0xfff → RouteTable
	DNSZone      = 1         // conntrack zone of ztunnel's own DNS queries
)

// probeSNAT4 and probeSNAT6 are the sources to which a host may rewrite probes.
var (
	probeSNAT4 = netip.MustParseAddr("169.254.7.127")
	probeSNAT6 = netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
)

// Options says how a pod is captured.
type Options struct {
	// Probes lists who may reach which ports without passing through ztunnel: the
	// kubelet, on the ports that the pod declares for probes.
	Probes []Probe
	// ProbeSNAT accepts, instead or as well, everything from the link-local
	// address to which the host rewrites probes (169.254.7.127).
	ProbeSNAT bool
	// BypassInbound leaves inbound traffic alone: a pod that is itself a gateway.
	BypassInbound bool
	// VirtualInterfaces are interfaces in the pod behind which virtual machines
	// live: TCP that arrives on them is outbound traffic of the pod.
	VirtualInterfaces []string
	// DNSCapture redirects DNS queries to ztunnel's resolver on port 15053.
	DNSCapture bool
	// IPv6 adds the rules for IPv6. Without it IPv6 is not captured at all.
	IPv6 bool
	// Proc is the procfs through which settings are written; "" is /proc, which
	// is read-only in a container: there it is where the node's is mounted.
	Proc string
}

// Probe allows one source to reach some ports.
type Probe struct {
	Source netip.Addr
	Ports  []uint16
}

// Ruleset is a pod's rules: nftables chains, and whether packets with mark 0x111
// are routed to the pod itself. Equal rulesets render as equal text.
type Ruleset struct {
	Chains []Chain
	Route4 bool   // ip rule and table 100 for IPv4
	Route6 bool   // the same for IPv6
	Proc   string // procfs for settings, as in Options
	Table  string // "" = TableName; of other tables the chains are all
}

// Chain is one base chain.
type Chain struct {
	Name     string
	Type     string // filter, nat, route
	Hook     string // prerouting, output, postrouting
	Priority int
	Rules    []Rule
}

// Rule does its action on packets that all matches accept.
type Rule struct {
	Matches []Match
	Action  Action
}

// Pod returns the rules of a pod in the mesh.
func Pod(o Options) Ruleset {
	rs := Ruleset{Route4: true, Route6: o.IPv6, Proc: o.Proc}
	if o.DNSCapture {
		rs.Chains = append(rs.Chains, rawChains()...)
	}
	rs.Chains = append(rs.Chains, mangleChains()...)
	rs.Chains = append(rs.Chains,
		natChain("prerouting", inbound(o)),
		natChain("output", outbound(o)))
	return rs
}

// Draining returns the rules of a pod that is leaving the mesh: nothing new is
// redirected, and what was goes on. One redirect rule that no packet can match
// stays, because without any the kernel forgets at once how to translate the
// connections that are open.
func Draining(ipv6 bool) Ruleset {
	harmless := []Rule{{Matches: []Match{isTCP(), sourcePort(0), destPort(0)}, Action: redirectTo(mesh.PortOutbound)}}
	return Ruleset{
		Chains: append(mangleChains(), natChain("prerouting", harmless), natChain("output", harmless)),
		Route4: true, Route6: ipv6,
	}
}

func natChain(hook string, rules []Rule) Chain {
	return Chain{Name: "nat-" + hook, Type: "nat", Hook: hook, Priority: -100, Rules: rules}
}

// mangleChains remember which connections ztunnel delivers, and route the
// program's replies back to it.
func mangleChains() []Chain {
	return []Chain{
		{Name: "mangle-prerouting", Type: "filter", Hook: "prerouting", Priority: -150, Rules: []Rule{
			{Matches: []Match{markIs(mesh.MarkProxy)}, Action: setConnMark(mesh.MarkInbound)},
		}},
		{Name: "mangle-output", Type: "route", Hook: "output", Priority: -150, Rules: []Rule{
			{Matches: []Match{connMarkIs(mesh.MarkInbound)}, Action: restoreMark()},
		}},
	}
}

// rawChains keep ztunnel's own DNS queries apart from the program's, which may
// use the same ports.
func rawChains() []Chain {
	return []Chain{
		{Name: "raw-prerouting", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []Rule{
			{Matches: []Match{isUDP(), sourcePort(53), markIsNot(mesh.MarkProxy)}, Action: setZone(DNSZone)},
		}},
		{Name: "raw-output", Type: "filter", Hook: "output", Priority: -300, Rules: []Rule{
			{Matches: []Match{isUDP(), destPort(53), markIs(mesh.MarkProxy)}, Action: setZone(DNSZone)},
		}},
	}
}

// inbound are the rules for TCP that arrives. Port 15008 is not redirected:
// ztunnel listens there itself.
func inbound(o Options) (rules []Rule) {
	for _, name := range o.VirtualInterfaces {
		rules = append(rules, Rule{[]Match{inInterface(name), isTCP(), firstSegment()}, redirectTo(mesh.PortOutbound)})
	}
	if o.BypassInbound {
		return rules
	}
	if o.ProbeSNAT {
		for _, a := range families(o.IPv6, probeSNAT4, probeSNAT6) {
			rules = append(rules, Rule{[]Match{sourceIs(a), isTCP()}, accept()})
		}
	}
	for _, p := range o.Probes {
		rules = append(rules, probeRules(p, o.IPv6)...)
	}
	for _, lo := range loopback(o.IPv6) {
		rules = append(rules, Rule{
			[]Match{destIsNot(lo), isTCP(), destPortIsNot(mesh.PortHBONE), firstSegment(), markIsNot(mesh.MarkProxy)},
			redirectTo(mesh.PortPlaintext)})
	}
	return rules
}

func probeRules(p Probe, ipv6 bool) (rules []Rule) {
	src := p.Source.Unmap().WithZone("")
	if !src.IsValid() || src.Is6() && !ipv6 {
		return nil
	}
	ports := slices.Compact(slices.Sorted(slices.Values(p.Ports)))
	for _, port := range ports {
		rules = append(rules, Rule{[]Match{sourceIs(src), isTCP(), destPort(port)}, accept()})
	}
	return rules
}

// outbound are the rules for TCP that the pod's programs open, and for the
// replies of ztunnel and of the programs it delivers to.
func outbound(o Options) (rules []Rule) {
	if o.ProbeSNAT {
		for _, a := range families(o.IPv6, probeSNAT4, probeSNAT6) {
			rules = append(rules, Rule{[]Match{destIs(a), isTCP()}, accept()})
		}
	}
	if o.DNSCapture {
		rules = append(rules, Rule{[]Match{outInterfaceIsNot("lo"), isUDP(), destPort(53), markIsNot(mesh.MarkProxy)}, redirectTo(mesh.PortDNS)})
		for _, lo := range loopback(o.IPv6) {
			rules = append(rules, Rule{[]Match{destIsNot(lo), isTCP(), destPort(53), firstSegment(), markIsNot(mesh.MarkProxy)}, redirectTo(mesh.PortDNS)})
		}
	}
	rules = append(rules, Rule{[]Match{isTCP(), markIs(mesh.MarkInbound)}, accept()})
	for _, lo := range loopback(o.IPv6) {
		rules = append(rules, Rule{[]Match{outInterface("lo"), destIsNot(lo)}, accept()})
	}
	for _, lo := range loopback(o.IPv6) {
		rules = append(rules, Rule{[]Match{destIsNot(lo), isTCP(), firstSegment(), markIsNot(mesh.MarkProxy)}, redirectTo(mesh.PortOutbound)})
	}
	return rules
}

func loopback(ipv6 bool) []netip.Prefix {
	if ipv6 {
		return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

func families(ipv6 bool, v4, v6 netip.Addr) []netip.Addr {
	if ipv6 {
		return []netip.Addr{v4, v6}
	}
	return []netip.Addr{v4}
}

// String renders the ruleset as a script for nft -f, with the routing that
// belongs to it as comments.
func (rs Ruleset) String() string {
	s := "table inet " + rs.table() + " {\n"
	for i, c := range rs.Chains {
		if i > 0 {
			s += "\n"
		}
		s += c.String()
	}
	s += "}\n"
	for _, r := range rs.routing() {
		s += "# " + r + "\n"
	}
	return s
}

// String renders the chain in nft syntax.
func (c Chain) String() string {
	s := fmt.Sprintf("\tchain %s {\n\t\ttype %s hook %s priority %d; policy accept;\n", c.Name, c.Type, c.Hook, c.Priority)
	for _, r := range c.Rules {
		s += "\t\t" + r.String() + "\n"
	}
	return s + "\t}\n"
}

// String renders the rule in nft syntax.
func (r Rule) String() string {
	s := ""
	for _, m := range r.Matches {
		s += m.text + " "
	}
	return s + r.Action.text
}

func (rs Ruleset) table() string { return cmp.Or(rs.Table, TableName) }

func (rs Ruleset) routing() (lines []string) {
	if rs.Table != "" {
		return nil
	}
	for _, f := range []struct {
		on       bool
		cmd, all string
	}{{rs.Route4, "ip -4", "0.0.0.0/0"}, {rs.Route6, "ip -6", "::/0"}} {
		if f.on {
			lines = append(lines,
				fmt.Sprintf("%s rule add fwmark %#x/%#x lookup %d pref %d", f.cmd, mesh.MarkInbound, mesh.MarkMask, RouteTable, RulePriority),
				fmt.Sprintf("%s route add local %s dev lo table %d", f.cmd, f.all, RouteTable))
		}
	}
	return append(lines, "sysctl "+migrateSysctl+"=1")
}
