package authz

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Explanation is a verdict and how it came about.
type Explanation struct {
	Verdict
	// Policies are all that apply, in the order in which they are asked: those that
	// deny, those that allow, those that are only tried out.
	Policies []Considered
	// Missing are policies that are named and not known; without a DENY that
	// matches they deny.
	Missing []mesh.PolicyName
}

// Considered is what one policy said to a connection.
type Considered struct {
	Policy  *mesh.Policy
	Matches bool
	Decides bool     // the verdict is its
	Rules   []string // one line each: that it matches, or what of the connection it does not
}

// Explain is Allowed for people: the same verdict, with what each policy said. It
// allocates freely.
func Explain(policies []*mesh.Policy, missing []mesh.PolicyName, c Connection) Explanation {
	e := Explanation{Verdict: Allowed(policies, missing, c), Missing: missing}
	var s subject
	s.init(c)
	for _, turn := range []func(*mesh.Policy) bool{
		func(p *mesh.Policy) bool { return !p.DryRun && p.Action == mesh.Deny },
		func(p *mesh.Policy) bool { return !p.DryRun && p.Action == mesh.Allow },
		func(p *mesh.Policy) bool { return p.DryRun },
	} {
		for _, p := range policies {
			if turn(p) {
				e.Policies = append(e.Policies, e.consider(p, &s))
			}
		}
	}
	return e
}

func (e *Explanation) consider(p *mesh.Policy, s *subject) Considered {
	c := Considered{Policy: p, Matches: matchPolicy(p, s)}
	c.Decides = c.Matches && !p.DryRun && p.Name == e.Policy && e.Allow == (p.Action == mesh.Allow)
	for i := range p.Rules {
		c.Rules = append(c.Rules, "rule "+strconv.Itoa(i+1)+": "+explainRule(&p.Rules[i], s))
	}
	if len(p.Rules) == 0 {
		c.Rules = []string{"no rules: it never matches"}
	}
	return c
}

func explainRule(r *mesh.Rule, s *subject) string {
	if len(r.Clauses) == 0 {
		return "matches everything"
	}
	for i := range r.Clauses {
		if !matchClause(&r.Clauses[i], s) {
			return explainClause(&r.Clauses[i], s)
		}
	}
	return "matches"
}

// explainClause tells what keeps each match of a clause from the connection.
func explainClause(c *mesh.Clause, s *subject) string {
	var why []string
	for i := range c.Matches {
		m := &c.Matches[i]
		if isEmpty(m) {
			why = append(why, "an empty match never matches")
			continue
		}
		why = append(why, failing(m, s).explain(m, s))
	}
	return strings.Join(why, "; ")
}

// explain says how m's field disagrees with the connection.
func (f field) explain(m *mesh.Match, s *subject) string {
	named := func(name, value string, want any) string {
		return fmt.Sprintf("%s %s is not %v", name, value, want)
	}
	excluded := func(name, value string, not any) string {
		return fmt.Sprintf("%s %s is excluded by %v", name, value, not)
	}
	port, who := strconv.Itoa(int(s.port)), s.principal()
	switch f {
	case destinationPorts:
		return named("destination port", port, m.DestinationPorts)
	case notDestinationPorts:
		return excluded("destination port", port, m.NotDestinationPorts)
	case destinationIPs:
		return named("destination", s.destination.String(), m.DestinationIPs)
	case notDestinationIPs:
		return excluded("destination", s.destination.String(), m.NotDestinationIPs)
	case sourceIPs:
		return named("source", s.source.String(), m.SourceIPs)
	case notSourceIPs:
		return excluded("source", s.source.String(), m.NotSourceIPs)
	case namespaces:
		return named("source namespace", strconv.Quote(s.identity.Namespace), patterns(m.Namespaces))
	case notNamespaces:
		return excluded("source namespace", strconv.Quote(s.identity.Namespace), patterns(m.NotNamespaces))
	case serviceAccounts:
		return named("service account of", who, accounts(m.ServiceAccounts))
	case notServiceAccounts:
		return excluded("service account of", who, accounts(m.NotServiceAccounts))
	case principals:
		return named("identity", who, patterns(m.Principals))
	case notPrincipals:
		return excluded("identity", who, patterns(m.NotPrincipals))
	}
	return "matches"
}

func (s *subject) principal() string {
	if !s.known {
		return "(none)"
	}
	return s.identity.Principal()
}

// patterns writes string matches as people write them in policies.
func patterns(list []mesh.StringMatch) []string {
	var all []string
	for _, m := range list {
		switch m.Kind {
		case mesh.MatchPrefix:
			all = append(all, m.Value+"*")
		case mesh.MatchSuffix:
			all = append(all, "*"+m.Value)
		case mesh.MatchPresence:
			all = append(all, "*")
		default:
			all = append(all, m.Value)
		}
	}
	return all
}

func accounts(list []mesh.ServiceAccountMatch) []string {
	var all []string
	for _, m := range list {
		all = append(all, m.Namespace+"/"+m.ServiceAccount)
	}
	return all
}
