// Package match compares strings, header fields and query parameters as Envoy's
// matchers do; routes and authorization rules are made of these. Values are
// immutable and safe for concurrent use, and comparing allocates nothing, except
// for a field that occurs several times.
package match

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Kind is how a String compares.
type Kind uint8

// Kinds of comparison.
const (
	Any Kind = iota
	Exact
	Prefix
	Suffix
	Contains
	Regex
)

// String compares one string.
type String struct {
	Kind       Kind
	Value      string
	Regexp     *regexp.Regexp // for Regex; see CompileRegex
	IgnoreCase bool           // not for Regex
}

// CompileRegex compiles an expression that must match the whole string.
func CompileRegex(expr string) (*regexp.Regexp, error) {
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

// Match reports whether s matches.
func (m *String) Match(s []byte) bool {
	if m.IgnoreCase && m.Kind != Regex && m.Kind != Any {
		return m.matchFold(s)
	}
	switch m.Kind {
	case Exact:
		return string(s) == m.Value
	case Prefix:
		return len(s) >= len(m.Value) && string(s[:len(m.Value)]) == m.Value
	case Suffix:
		return len(s) >= len(m.Value) && string(s[len(s)-len(m.Value):]) == m.Value
	case Contains:
		return bytes.Contains(s, []byte(m.Value))
	case Regex:
		return m.Regexp.Match(s)
	}
	return true
}

// matchFold compares without regard to case, of ASCII letters.
func (m *String) matchFold(s []byte) bool {
	value := strings.ToLower(m.Value)
	n := len(s) - len(value)
	switch {
	case n < 0:
		return false
	case m.Kind == Exact:
		return n == 0 && http.EqualFoldString(s, value)
	case m.Kind == Prefix:
		return http.EqualFoldString(s[:len(value)], value)
	case m.Kind == Suffix:
		return http.EqualFoldString(s[n:], value)
	}
	for ; n >= 0; n-- {
		if http.EqualFoldString(s[n:n+len(value)], value) {
			return true
		}
	}
	return false
}

// Header compares a field, or a pseudo field such as ":method". Several fields
// of the name are compared as one, joined by commas.
type Header struct {
	Name           string // lower case
	Value          String // Any: the field's presence alone counts
	Absent         bool   // with Any: the field must be absent
	Invert         bool   // of the whole result
	MissingIsEmpty bool   // a missing field is compared as an empty one
}

// Match reports whether r matches.
func (m *Header) Match(r *http.Request) bool {
	value, ok := Field(r, m.Name)
	switch {
	case m.Value.Kind == Any:
		return (ok != m.Absent) != m.Invert
	case !ok && !m.MissingIsEmpty:
		return m.Invert // a missing field matches no value, and every inverted one
	}
	return m.Value.Match(value) != m.Invert
}

var https = []byte("https")

// Field returns the value of a field or pseudo field.
func Field(r *http.Request, name string) ([]byte, bool) {
	if name == "" || name[0] != ':' {
		if name == "host" {
			return r.Authority(), true
		}
		return r.Header.Joined(name)
	}
	switch name {
	case ":authority":
		return r.Authority(), true
	case ":path":
		return r.Target(), true
	case ":method":
		return r.MethodBytes(), true
	case ":scheme":
		if r.Scheme == "https" {
			return https, true
		}
		return https[:4], true
	}
	return nil, false
}

// Query compares one query parameter.
type Query struct {
	Name  string
	Value String // Any: presence alone counts
}

// Match reports whether the query has the parameter with a matching value. The
// first one of the name counts. Values are compared as they are on the wire.
func (m *Query) Match(query []byte) bool {
	for len(query) > 0 {
		var pair []byte
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			pair, query = query, nil
		}
		name, value := pair, []byte(nil)
		if i := bytes.IndexByte(pair, '='); i >= 0 {
			name, value = pair[:i], pair[i+1:]
		}
		if string(name) == m.Name {
			return m.Value.Match(value)
		}
	}
	return false
}
