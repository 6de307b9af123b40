package workloads

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// DumpPolicy is one policy; its rules are rules of clauses of matches.
type DumpPolicy struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	Rules     [][][]DumpMatch `json:"rules"`
	DryRun    bool            `json:"dryRun,omitempty"`
}

// DumpMatch is one match; string matches are {"Exact": "x"} and the like.
type DumpMatch struct {
	Namespaces          []map[string]string  `json:"namespaces,omitempty"`
	NotNamespaces       []map[string]string  `json:"notNamespaces,omitempty"`
	Principals          []map[string]string  `json:"principals,omitempty"`
	NotPrincipals       []map[string]string  `json:"notPrincipals,omitempty"`
	ServiceAccounts     []DumpServiceAccount `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []DumpServiceAccount `json:"notServiceAccounts,omitempty"`
	SourceIPs           []netip.Prefix       `json:"sourceIps,omitempty"`
	NotSourceIPs        []netip.Prefix       `json:"notSourceIps,omitempty"`
	DestinationIPs      []netip.Prefix       `json:"destinationIps,omitempty"`
	NotDestinationIPs   []netip.Prefix       `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16             `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16             `json:"notDestinationPorts,omitempty"`
}

// DumpServiceAccount is one service account.
type DumpServiceAccount struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func dumpPolicy(p *mesh.Policy) DumpPolicy {
	d := DumpPolicy{
		Name: p.Name.Name, Namespace: p.Name.Namespace,
		Scope: p.Scope.String(), Action: p.Action.String(), DryRun: p.DryRun, Rules: [][][]DumpMatch{},
	}
	for _, r := range p.Rules {
		rule := [][]DumpMatch{}
		for _, c := range r.Clauses {
			clause := []DumpMatch{}
			for _, m := range c.Matches {
				clause = append(clause, dumpMatch(m))
			}
			rule = append(rule, clause)
		}
		d.Rules = append(d.Rules, rule)
	}
	return d
}

func dumpMatch(m mesh.Match) DumpMatch {
	return DumpMatch{
		Namespaces: dumpStrings(m.Namespaces), NotNamespaces: dumpStrings(m.NotNamespaces),
		Principals: dumpStrings(m.Principals), NotPrincipals: dumpStrings(m.NotPrincipals),
		ServiceAccounts: dumpAccounts(m.ServiceAccounts), NotServiceAccounts: dumpAccounts(m.NotServiceAccounts),
		SourceIPs: m.SourceIPs, NotSourceIPs: m.NotSourceIPs,
		DestinationIPs: m.DestinationIPs, NotDestinationIPs: m.NotDestinationIPs,
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func dumpStrings(list []mesh.StringMatch) (out []map[string]string) {
	for _, m := range list {
		out = append(out, map[string]string{m.Kind.String(): m.Value})
	}
	return out
}

func dumpAccounts(list []mesh.ServiceAccountMatch) (out []DumpServiceAccount) {
	for _, m := range list {
		out = append(out, DumpServiceAccount(m))
	}
	return out
}
