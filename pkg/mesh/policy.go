package mesh

import "net/netip"

// Scope says which workloads a policy applies to.
type Scope uint8

const (
	ScopeGlobal           Scope = iota // every workload of the mesh
	ScopeNamespace                     // every workload of the policy's namespace
	ScopeWorkloadSelector              // the workloads that name it
)

func (s Scope) String() string { return [...]string{"Global", "Namespace", "WorkloadSelector"}[s] }

// Action is what a matching policy does.
type Action uint8

const (
	Allow Action = iota
	Deny
)

func (a Action) String() string { return [...]string{"Allow", "Deny"}[a] }

// Policy is an L4 authorization policy (istio.security.Authorization). It
// matches when any rule matches; a policy without rules never matches.
type Policy struct {
	Name   PolicyName
	Scope  Scope
	Action Action
	Rules  []Rule
	DryRun bool // evaluated and logged, never enforced
}

// Rule matches when all of its clauses match; without clauses it always does.
type Rule struct {
	Clauses []Clause
}

// Clause matches when any of its matches does, or when it has none. A Match
// without any field is skipped and never satisfies the clause.
type Clause struct {
	Matches []Match
}

// Match compares one connection. Fields are ANDed; within a field a positive
// list needs one value to match, a Not list needs none to match.
type Match struct {
	Namespaces          []StringMatch
	NotNamespaces       []StringMatch
	Principals          []StringMatch
	NotPrincipals       []StringMatch
	ServiceAccounts     []ServiceAccountMatch
	NotServiceAccounts  []ServiceAccountMatch
	SourceIPs           []netip.Prefix
	NotSourceIPs        []netip.Prefix
	DestinationIPs      []netip.Prefix
	NotDestinationIPs   []netip.Prefix
	DestinationPorts    []uint16
	NotDestinationPorts []uint16
}

// StringMatchKind is how a StringMatch compares.
type StringMatchKind uint8

const (
	MatchExact StringMatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchPresence // any value but the empty one
)

func (k StringMatchKind) String() string {
	return [...]string{"Exact", "Prefix", "Suffix", "Presence"}[k]
}

// StringMatch compares one string. Value is empty for MatchPresence.
type StringMatch struct {
	Kind  StringMatchKind
	Value string
}

// ServiceAccountMatch compares an identity's namespace and service account,
// whatever its trust domain.
type ServiceAccountMatch struct {
	Namespace      string
	ServiceAccount string
}
