package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/culvert-mesh/culvert/waypoint/match"
)

func decodeString(m *matcherv3.StringMatcher) (out match.String, err error) {
	out.IgnoreCase = m.GetIgnoreCase()
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.Kind, out.Value = match.Exact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.Kind, out.Value = match.Prefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		out.Kind, out.Value = match.Suffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		out.Kind, out.Value = match.Contains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		return decodeRegex(p.SafeRegex)
	default:
		return out, errors.New("no pattern")
	}
	return out, nil
}

func decodeRegex(m *matcherv3.RegexMatcher) (match.String, error) {
	re, err := match.CompileRegex(m.GetRegex())
	return match.String{Kind: match.Regex, Value: m.GetRegex(), Regexp: re}, at("regex", err)
}

func decodeHeader(m *routev3.HeaderMatcher) (out match.Header, err error) {
	out = match.Header{Name: strings.ToLower(m.GetName()), Invert: m.GetInvertMatch(), MissingIsEmpty: m.GetTreatMissingHeaderAsEmpty()}
	if out.Name == "" {
		return out, errors.New("name: required")
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil: // presence
	case *routev3.HeaderMatcher_PresentMatch:
		out.Absent = !s.PresentMatch
	case *routev3.HeaderMatcher_StringMatch:
		out.Value, err = decodeString(s.StringMatch)
	default:
		err = fmt.Errorf("%T: not supported", s)
	}
	return out, err
}

func decodeQuery(m *routev3.QueryParameterMatcher) (out match.Query, err error) {
	out.Name = m.GetName()
	if s := m.GetStringMatch(); s != nil {
		out.Value, err = decodeString(s)
		return out, at("string_match", err)
	}
	if p, ok := m.GetQueryParameterMatchSpecifier().(*routev3.QueryParameterMatcher_PresentMatch); ok && !p.PresentMatch {
		return out, errors.New("present_match: false is not supported")
	}
	return out, nil
}

func decodePrefix(c *corev3.CidrRange) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, at("address_prefix", err)
	}
	p, err := addr.Unmap().Prefix(int(c.GetPrefixLen().GetValue()))
	return p, at("prefix_len", err)
}
