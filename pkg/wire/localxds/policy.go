package localxds

import (
	"fmt"
	"net/netip"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// The words of the file, and what they mean.

func policyScopes() map[string]mesh.Scope {
	return map[string]mesh.Scope{
		"Global": mesh.ScopeGlobal, "Namespace": mesh.ScopeNamespace, "WorkloadSelector": mesh.ScopeWorkloadSelector,
	}
}

func actions() map[string]mesh.Action {
	return map[string]mesh.Action{"Allow": mesh.Allow, "Deny": mesh.Deny}
}

func kinds() map[string]mesh.StringMatchKind {
	return map[string]mesh.StringMatchKind{
		"!Exact": mesh.MatchExact, "!Prefix": mesh.MatchPrefix, "!Suffix": mesh.MatchSuffix, "!Presence": mesh.MatchPresence,
	}
}

func policy(n *yaml.Node) (*mesh.Policy, error) {
	f, err := open(n, []string{"name", "namespace", "scope", "action", "rules"}, "dryRun")
	if err != nil {
		return nil, err
	}
	p := &mesh.Policy{}
	f.get("name", &p.Name.Name)
	f.get("namespace", &p.Name.Namespace)
	f.get("dryRun", &p.DryRun)
	enum(f, "scope", &p.Scope, policyScopes())
	enum(f, "action", &p.Action, actions())
	p.Rules = all(f, "rules", rule)
	return p, f.err
}

// rule decodes the outer two of the nested lists.
func rule(n *yaml.Node) (r mesh.Rule, err error) {
	r.Clauses, err = items(n, "clauses", clause)
	return r, err
}

func clause(n *yaml.Node) (c mesh.Clause, err error) {
	c.Matches, err = items(n, "matches", match)
	return c, err
}

func items[T any](n *yaml.Node, name string, parse func(*yaml.Node) (T, error)) ([]T, error) {
	var l list
	if err := n.Decode(&l); err != nil {
		return nil, err
	}
	if len(l) == 0 {
		return nil, nil
	}
	return each(l, name, parse)
}

// match decodes one match; keys that it does not know are passed over.
func match(n *yaml.Node) (m mesh.Match, err error) {
	f, err := openAny(n)
	if err != nil {
		return m, err
	}
	m.Namespaces = all(f, "namespaces", stringMatch)
	m.NotNamespaces = all(f, "notNamespaces", stringMatch)
	m.Principals = all(f, "principals", stringMatch)
	m.NotPrincipals = all(f, "notPrincipals", stringMatch)
	m.ServiceAccounts = all(f, "serviceAccounts", serviceAccount)
	m.NotServiceAccounts = all(f, "notServiceAccounts", serviceAccount)
	m.SourceIPs = all(f, "sourceIps", prefix)
	m.NotSourceIPs = all(f, "notSourceIps", prefix)
	m.DestinationIPs = all(f, "destinationIps", prefix)
	m.NotDestinationIPs = all(f, "notDestinationIps", prefix)
	f.get("destinationPorts", &m.DestinationPorts)
	f.get("notDestinationPorts", &m.NotDestinationPorts)
	return m, f.err
}

// stringMatch decodes a scalar under one of the tags !Exact, !Prefix, !Suffix, or
// an empty list under !Presence.
func stringMatch(n *yaml.Node) (m mesh.StringMatch, err error) {
	n = resolve(n)
	kind, ok := kinds()[n.Tag]
	if !ok {
		return m, fmt.Errorf("line %d: want one of the tags !Exact, !Prefix, !Suffix, !Presence", n.Line)
	}
	m.Kind = kind
	if kind == mesh.MatchPresence {
		return m, nil
	}
	if n.Kind != yaml.ScalarNode {
		return m, fmt.Errorf("line %d: want a text after %s", n.Line, n.Tag)
	}
	m.Value = n.Value
	return m, nil
}

func serviceAccount(n *yaml.Node) (m mesh.ServiceAccountMatch, err error) {
	f, err := openAny(n)
	if err != nil {
		return m, err
	}
	f.get("namespace", &m.Namespace)
	f.get("serviceAccount", &m.ServiceAccount)
	return m, f.err
}

// prefix decodes a range of addresses, or one address.
func prefix(n *yaml.Node) (netip.Prefix, error) {
	text := resolve(n).Value
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return p, nil
}
