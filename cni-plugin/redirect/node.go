package redirect

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// NodeTable is the table of the node's own rules.
const NodeTable = "culvert-probes"

// Node returns the rules of the node, not of a pod, that rewrite the source of the
// kubelet's probes (Options.ProbeSNAT): TCP that a process of root opens to one of
// the pods comes from 169.254.7.127. They come before others that rewrite sources,
// kube-proxy's among them.
//
// What else root calls from the node is let into pods in the same way; that is why
// this is not the default.
func Node(pods []netip.Addr) Ruleset {
	var rules []Rule
	for _, ip := range slices.SortedFunc(slices.Values(pods), netip.Addr.Compare) {
		source := probeSNAT4
		if ip.Is6() {
			source = probeSNAT6
		}
		rules = append(rules, Rule{[]Match{byRoot(), destIs(ip), isTCP()}, sourceTo(source)})
	}
	return Ruleset{Table: NodeTable, Chains: []Chain{{Name: "nat-postrouting", Type: "nat", Hook: "postrouting", Priority: 90, Rules: rules}}}
}

// ApplyNode makes them the node's rules, in its namespace.
func ApplyNode(ns *netns.NS, rs Ruleset) error {
	if err := transact(ns, func(c *nftables.Conn) error { rs.add(c); return nil }); err != nil {
		return fmt.Errorf("redirect: apply the node's rules for probes: %w", err)
	}
	return nil
}

// NodeApplied reports whether a namespace has rules for probes.
func NodeApplied(ns *netns.NS) (bool, error) { return hasTable(ns, NodeTable) }

// RemoveNode removes the node's rules. Removing twice is no error.
func RemoveNode(ns *netns.NS) error {
	if err := removeTable(ns, NodeTable); err != nil {
		return fmt.Errorf("redirect: remove the node's rules for probes: %w", err)
	}
	return nil
}

// byRoot matches packets of sockets that root has opened here.
func byRoot() Match {
	return Match{"meta skuid 0", []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(0))}}
}

// sourceTo rewrites the source of a connection.
func sourceTo(a netip.Addr) Action {
	family, name := uint32(unix.NFPROTO_IPV4), "ip"
	if a.Is6() {
		family, name = unix.NFPROTO_IPV6, "ip6"
	}
	return Action{fmt.Sprintf("snat %s to %s", name, a), []expr.Any{
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: reg},
	}}
}
