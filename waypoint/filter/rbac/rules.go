package rbac

import (
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/match"
)

// Rule is a permission or a principal. req is nil when a whole connection is
// looked at; rules about requests match none then.
type Rule interface {
	Match(x *filter.Exchange, req *http.Request) bool
}

// Any matches everything.
type Any struct{}

// Match implements Rule.
func (Any) Match(*filter.Exchange, *http.Request) bool { return true }

// And matches when all of its rules do.
type And []Rule

// Match implements Rule.
func (a And) Match(x *filter.Exchange, req *http.Request) bool {
	for _, r := range a {
		if !r.Match(x, req) {
			return false
		}
	}
	return true
}

// Or matches when one of its rules does.
type Or []Rule

// Match implements Rule.
func (o Or) Match(x *filter.Exchange, req *http.Request) bool { return anyOf(o, x, req) }

// Not matches when its rule does not.
type Not struct{ Rule Rule }

// Match implements Rule.
func (n Not) Match(x *filter.Exchange, req *http.Request) bool { return !n.Rule.Match(x, req) }

// Header compares a field or pseudo field.
type Header struct{ match.Header }

// Match implements Rule.
func (h Header) Match(_ *filter.Exchange, req *http.Request) bool {
	return req != nil && h.Header.Match(req)
}

// Path compares the path without the query.
type Path struct{ match.String }

// Match implements Rule.
func (p Path) Match(_ *filter.Exchange, req *http.Request) bool {
	return req != nil && p.String.Match(req.Path())
}

// SourceIP matches clients in a range.
type SourceIP struct{ netip.Prefix }

// Match implements Rule.
func (s SourceIP) Match(x *filter.Exchange, _ *http.Request) bool {
	return s.Contains(x.Source.Addr().Unmap())
}

// DestinationIP matches dialled addresses in a range.
type DestinationIP struct{ netip.Prefix }

// Match implements Rule.
func (d DestinationIP) Match(x *filter.Exchange, _ *http.Request) bool {
	return d.Contains(x.Destination.Addr().Unmap())
}

// DestinationPort matches dialled ports from First to Last, both included.
type DestinationPort struct{ First, Last uint16 }

// Match implements Rule.
func (d DestinationPort) Match(x *filter.Exchange, _ *http.Request) bool {
	p := x.Destination.Port()
	return d.First <= p && p <= d.Last
}

// Authenticated matches clients with a certificate whose SPIFFE URI matches. A
// Name of kind match.Any matches every certificate.
type Authenticated struct{ Name match.String }

// Match implements Rule.
func (a Authenticated) Match(x *filter.Exchange, _ *http.Request) bool {
	if x.Identity.IsZero() {
		return false
	}
	return a.Name.Match(x.PeerURI())
}

// PathTemplate matches paths by segments: "{*}" is one segment, "{**}" any
// number of them, everything else is literal.
type PathTemplate struct{ segments []string }

// NewPathTemplate parses a template; ok is false when "{**}" stands twice or an
// operator is only a part of a segment.
func NewPathTemplate(t string) (p PathTemplate, ok bool) {
	if !strings.HasPrefix(t, "/") {
		return p, false
	}
	p.segments = strings.Split(t[1:], "/")
	globs := 0
	for _, s := range p.segments {
		switch {
		case s == "{**}":
			globs++
		case s != "{*}" && strings.ContainsAny(s, "{}*"):
			return p, false
		}
	}
	return p, globs <= 1
}

// Match implements Rule.
func (p PathTemplate) Match(_ *filter.Exchange, req *http.Request) bool {
	if req == nil {
		return false
	}
	path := req.Path()
	return len(path) > 0 && path[0] == '/' && matchSegments(p.segments, path[1:], true)
}

// matchSegments matches what is left of a path; more is false after its last segment.
func matchSegments(want []string, path []byte, more bool) bool {
	if len(want) == 0 {
		return !more
	}
	if want[0] == "{**}" {
		if len(want) == 1 {
			return true
		}
		for {
			if matchSegments(want[1:], path, more) {
				return true
			}
			if !more {
				return false
			}
			_, path, more = cutSegment(path)
		}
	}
	if !more {
		return false
	}
	seg, rest, more := cutSegment(path)
	if want[0] == "{*}" && len(seg) == 0 || want[0] != "{*}" && string(seg) != want[0] {
		return false
	}
	return matchSegments(want[1:], rest, more)
}

func cutSegment(path []byte) (seg, rest []byte, more bool) {
	for i, c := range path {
		if c == '/' {
			return path[:i], path[i+1:], true
		}
	}
	return path, nil, false
}
