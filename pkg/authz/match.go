package authz

import (
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// subject is a connection made ready for many comparisons: the principal is put
// together once, in place.
type subject struct {
	source      netip.Addr
	destination netip.Addr
	port        uint16
	identity    mesh.Identity
	known       bool   // there is an identity
	long        string // the principal, if buf is too small for it
	n           int    // bytes of the principal in buf
	buf         [256]byte
}

func (s *subject) init(c Connection) {
	s.source = c.Source.Unmap().WithZone("")
	s.destination = c.Destination.Addr().Unmap().WithZone("")
	s.port = c.Destination.Port()
	s.identity = c.Identity
	if s.known = !c.Identity.IsZero(); !s.known {
		return
	}
	if len(c.Identity.TrustDomain)+len(c.Identity.Namespace)+len(c.Identity.ServiceAccount) > len(s.buf)-8 {
		s.long = c.Identity.Principal()
		return
	}
	for _, part := range [...]string{c.Identity.TrustDomain, "/ns/", c.Identity.Namespace, "/sa/", c.Identity.ServiceAccount} {
		s.n += copy(s.buf[s.n:], part)
	}
}

// matchPolicy: any rule.
func matchPolicy(p *mesh.Policy, s *subject) bool {
	for i := range p.Rules {
		if matchRule(&p.Rules[i], s) {
			return true
		}
	}
	return false
}

// matchRule: all clauses.
func matchRule(r *mesh.Rule, s *subject) bool {
	for i := range r.Clauses {
		if !matchClause(&r.Clauses[i], s) {
			return false
		}
	}
	return true
}

// matchClause: any match that is not empty, or no match at all.
func matchClause(c *mesh.Clause, s *subject) bool {
	for i := range c.Matches {
		if m := &c.Matches[i]; !isEmpty(m) && matches(m, s) {
			return true
		}
	}
	return len(c.Matches) == 0
}

func isEmpty(m *mesh.Match) bool {
	return len(m.Namespaces) == 0 && len(m.NotNamespaces) == 0 &&
		len(m.Principals) == 0 && len(m.NotPrincipals) == 0 &&
		len(m.ServiceAccounts) == 0 && len(m.NotServiceAccounts) == 0 &&
		len(m.SourceIPs) == 0 && len(m.NotSourceIPs) == 0 &&
		len(m.DestinationIPs) == 0 && len(m.NotDestinationIPs) == 0 &&
		len(m.DestinationPorts) == 0 && len(m.NotDestinationPorts) == 0
}

// field is a field of a Match; its number is its place in fieldNames.
type field uint8

const (
	noField field = iota
	destinationPorts
	notDestinationPorts
	destinationIPs
	notDestinationIPs
	sourceIPs
	notSourceIPs
	namespaces
	notNamespaces
	serviceAccounts
	notServiceAccounts
	principals
	notPrincipals
)

// matches: all fields.
func matches(m *mesh.Match, s *subject) bool { return failing(m, s) == noField }

// failing returns the first field that the connection does not meet, the cheap
// ones first.
func failing(m *mesh.Match, s *subject) field {
	switch {
	case len(m.DestinationPorts) > 0 && !slices.Contains(m.DestinationPorts, s.port):
		return destinationPorts
	case slices.Contains(m.NotDestinationPorts, s.port):
		return notDestinationPorts
	case len(m.DestinationIPs) > 0 && !contains(m.DestinationIPs, s.destination):
		return destinationIPs
	case contains(m.NotDestinationIPs, s.destination):
		return notDestinationIPs
	case len(m.SourceIPs) > 0 && !contains(m.SourceIPs, s.source):
		return sourceIPs
	case contains(m.NotSourceIPs, s.source):
		return notSourceIPs
	case len(m.Namespaces) > 0 && !anyString(m.Namespaces, s.identity.Namespace):
		return namespaces
	case anyString(m.NotNamespaces, s.identity.Namespace):
		return notNamespaces
	case len(m.ServiceAccounts) > 0 && !anyAccount(m.ServiceAccounts, s):
		return serviceAccounts
	case anyAccount(m.NotServiceAccounts, s):
		return notServiceAccounts
	case len(m.Principals) > 0 && !anyPrincipal(m.Principals, s):
		return principals
	case anyPrincipal(m.NotPrincipals, s):
		return notPrincipals
	}
	return noField
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// anyAccount never matches a peer without an identity.
func anyAccount(list []mesh.ServiceAccountMatch, s *subject) bool {
	if !s.known {
		return false
	}
	for i := range list {
		if list[i].ServiceAccount == s.identity.ServiceAccount && list[i].Namespace == s.identity.Namespace {
			return true
		}
	}
	return false
}

// anyPrincipal never matches a peer without an identity, whatever the pattern.
func anyPrincipal(list []mesh.StringMatch, s *subject) bool {
	if !s.known {
		return false
	}
	if s.long != "" {
		return anyString(list, s.long)
	}
	for i := range list {
		if matchBytes(&list[i], s.buf[:s.n]) {
			return true
		}
	}
	return false
}

func anyString(list []mesh.StringMatch, v string) bool {
	for i := range list {
		if matchString(&list[i], v) {
			return true
		}
	}
	return false
}

func matchString(m *mesh.StringMatch, v string) bool {
	n := len(m.Value)
	switch m.Kind {
	case mesh.MatchExact:
		return v == m.Value
	case mesh.MatchPrefix:
		return len(v) >= n && v[:n] == m.Value
	case mesh.MatchSuffix:
		return len(v) >= n && v[len(v)-n:] == m.Value
	case mesh.MatchPresence:
		return v != ""
	}
	return false
}

// matchBytes is matchString for bytes; comparing a converted slice does not
// allocate.
func matchBytes(m *mesh.StringMatch, v []byte) bool {
	n := len(m.Value)
	switch m.Kind {
	case mesh.MatchExact:
		return string(v) == m.Value
	case mesh.MatchPrefix:
		return len(v) >= n && string(v[:n]) == m.Value
	case mesh.MatchSuffix:
		return len(v) >= n && string(v[len(v)-n:]) == m.Value
	case mesh.MatchPresence:
		return len(v) > 0
	}
	return false
}
