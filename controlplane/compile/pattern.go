package compile

import (
	"regexp"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Patterns of a policy that are more than a text with an asterisk at one end.
//
//	trust domain  a part of every principal: TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
//	path          /a/{*}/b: any one segment; /a/{**}: any number of them, at the end or before it

// domains adds trust domains to what is asked of a peer's principal. A connection has
// one list of principals, of which one must match: a list of both that must match, and
// a domain of which only the end is known, it cannot show.
func (t *l4) domains(field string, domains, principals []string) []mesh.StringMatch {
	out := stringMatches(principals)
	if len(domains) == 0 {
		return out
	}
	negative := strings.HasSuffix(field, ".notTrustDomains") // none of either may match: one list holds both
	if len(principals) > 0 && !negative {
		t.without(field, "ztunnel compares a peer with trust domains or with principals, not with both")
		return out
	}
	for _, d := range domains {
		switch m := stringMatch(d); m.Kind {
		case mesh.MatchPresence:
			out = append(out, m)
		case mesh.MatchPrefix:
			out = append(out, m)
		case mesh.MatchExact:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPrefix, Value: m.Value + "/"})
		default:
			t.without(field, "ztunnel does not compare the end of a trust domain")
			return stringMatches(principals)
		}
	}
	return out
}

// domain checks a pattern for a trust domain.
func (v *validation) domain(field, s string) {
	v.pattern(field, s)
	if strings.Contains(s, "/") {
		v.invalid(field, "%q is not a trust domain", s)
	}
}

// operators of a path template.
var operators = regexp.MustCompile(`\{\*{1,2}\}`)

func isTemplate(path string) bool { return operators.MatchString(path) }

// template checks a path that may be a template: operators are whole segments, and
// {**} is the last one.
func (v *validation) template(field, path string) {
	if !isTemplate(path) {
		return
	}
	last := false
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "{*}" || segment == "{**}":
			if last {
				v.invalid(field, "%q: {**} must be the last operator", path)
				return
			}
			last = segment == "{**}"
		case strings.ContainsAny(segment, "{}*"):
			v.invalid(field, "%q: an operator must be a whole segment, and stands without other asterisks", path)
			return
		}
	}
	if !strings.HasPrefix(path, "/") {
		v.invalid(field, "%q must begin with /", path)
	}
}

// templateRegex is the expression for a template. {*} is one segment, and not an empty
// one; {**} is any number of segments, none included.
func templateRegex(path string) string {
	var out strings.Builder
	at := 0
	for _, m := range operators.FindAllStringIndex(path, -1) {
		out.WriteString(regexp.QuoteMeta(path[at:m[0]]))
		if m[1]-m[0] == len("{*}") {
			out.WriteString("[^/]+")
		} else {
			out.WriteString(".*")
		}
		at = m[1]
	}
	out.WriteString(regexp.QuoteMeta(path[at:]))
	return out.String()
}
