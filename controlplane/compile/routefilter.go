package compile

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// filters is what the filters of a rule or of a backend come to.
type filters struct {
	headers     headerChanges
	redirect    *gatewayv1.HTTPRequestRedirectFilter
	rewrite     *gatewayv1.HTTPURLRewriteFilter
	mirrors     []*gatewayv1.HTTPRequestMirrorFilter
	unsupported []int // which of them
}

// ruleFilters sorts the filters of a rule.
func ruleFilters(list []gatewayv1.HTTPRouteFilter) filters {
	var out filters
	for i, f := range list {
		switch {
		case out.headers.take(f):
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			out.redirect = f.RequestRedirect
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			out.rewrite = f.URLRewrite
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			out.mirrors = append(out.mirrors, f.RequestMirror)
		default:
			out.unsupported = append(out.unsupported, i)
		}
	}
	return out
}

// backendFilters sorts the filters of a backend, which may change headers only.
func backendFilters(list []gatewayv1.HTTPRouteFilter) filters {
	var out filters
	for i, f := range list {
		if !out.headers.take(f) {
			out.unsupported = append(out.unsupported, i)
		}
	}
	return out
}

// headerChanges are those of requests and of their answers.
type headerChanges struct {
	requestAdd, responseAdd       []*corev3.HeaderValueOption
	requestRemove, responseRemove []string
}

// take adds what f changes; it reports false for another kind of filter.
func (h *headerChanges) take(f gatewayv1.HTTPRouteFilter) bool {
	switch {
	case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
		h.requestAdd = append(h.requestAdd, headerOptions(f.RequestHeaderModifier)...)
		h.requestRemove = append(h.requestRemove, f.RequestHeaderModifier.Remove...)
	case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
		h.responseAdd = append(h.responseAdd, headerOptions(f.ResponseHeaderModifier)...)
		h.responseRemove = append(h.responseRemove, f.ResponseHeaderModifier.Remove...)
	default:
		return false
	}
	return true
}

func (h *headerChanges) route(r *routev3.Route) {
	r.RequestHeadersToAdd, r.RequestHeadersToRemove = h.requestAdd, h.requestRemove
	r.ResponseHeadersToAdd, r.ResponseHeadersToRemove = h.responseAdd, h.responseRemove
}

func (h *headerChanges) cluster(w *routev3.WeightedCluster_ClusterWeight) {
	w.RequestHeadersToAdd, w.RequestHeadersToRemove = h.requestAdd, h.requestRemove
	w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = h.responseAdd, h.responseRemove
}

func headerOptions(f *gatewayv1.HTTPHeaderFilter) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, h := range f.Set {
		out = append(out, headerOption(h, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, h := range f.Add {
		out = append(out, headerOption(h, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	return out
}

// headerOption is one change. A percent sign would begin a substitution.
func headerOption(h gatewayv1.HTTPHeader, a corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	value := strings.ReplaceAll(h.Value, "%", "%%")
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: string(h.Name), Value: value}, AppendAction: a}
}

// redirect translates an answer with another location. Without scheme and port it
// keeps the port that the client addressed; with a scheme, that scheme's own.
func redirect(f *gatewayv1.HTTPRequestRedirectFilter, m gatewayv1.HTTPRouteMatch, port uint16) *routev3.RedirectAction {
	out := &routev3.RedirectAction{
		HostRedirect: string(deref(f.Hostname, "")),
		ResponseCode: redirectCode(deref(f.StatusCode, 302)),
	}
	if f.Scheme != nil {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: *f.Scheme}
	}
	switch {
	case f.Port != nil:
		out.PortRedirect = uint32(*f.Port)
	case f.Scheme == nil:
		out.PortRedirect = uint32(port)
	}
	if f.Path == nil {
		return out
	}
	switch f.Path.Type {
	case gatewayv1.FullPathHTTPPathModifier:
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: absolute(deref(f.Path.ReplaceFullPath, "/"))}
	case gatewayv1.PrefixMatchHTTPPathModifier:
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: newPrefix(deref(f.Path.ReplacePrefixMatch, "/"), m)}
	}
	return out
}

func redirectCode(status int) routev3.RedirectAction_RedirectResponseCode {
	switch status {
	case 301:
		return routev3.RedirectAction_MOVED_PERMANENTLY
	case 303:
		return routev3.RedirectAction_SEE_OTHER
	case 307:
		return routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		return routev3.RedirectAction_PERMANENT_REDIRECT
	}
	return routev3.RedirectAction_FOUND
}

// rewrite translates a change of host and path on the way to the backend.
func rewrite(out *routev3.RouteAction, f *gatewayv1.HTTPURLRewriteFilter, m gatewayv1.HTTPRouteMatch) {
	if f.Hostname != nil {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*f.Hostname)}
	}
	if f.Path == nil {
		return
	}
	switch f.Path.Type {
	case gatewayv1.FullPathHTTPPathModifier:
		out.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern:      &matcherv3.RegexMatcher{Regex: "^/.*$"},
			Substitution: strings.ReplaceAll(absolute(deref(f.Path.ReplaceFullPath, "/")), `\`, `\\`),
		}
	case gatewayv1.PrefixMatchHTTPPathModifier:
		out.PrefixRewrite = newPrefix(deref(f.Path.ReplacePrefixMatch, "/"), m)
	}
}

func absolute(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "/" + path
	}
	return path
}

// newPrefix is what replaces the prefix that m matches. Elements of the path are
// replaced and not letters, so the slash at a prefix's end does not count: /a/
// replaced by /b/ turns /a/x into /b/x, as without either slash. What matches "/"
// keeps the slash, which is all that was compared.
func newPrefix(by string, m gatewayv1.HTTPRouteMatch) string {
	by = strings.TrimRight(absolute(by), "/")
	_, value := pathOf(m)
	if by == "" || strings.Trim(value, "/") == "" {
		by += "/"
	}
	return by
}

// mirrorShare is which share of the requests is mirrored: n of every so many.
func mirrorShare(m *gatewayv1.HTTPRequestMirrorFilter) (n, of int32) {
	switch {
	case m.Fraction != nil:
		return m.Fraction.Numerator, deref(m.Fraction.Denominator, 100)
	case m.Percent != nil:
		return *m.Percent, 100
	}
	return 1, 1
}

// fraction is n of every so many, as near as millionths come.
func fraction(n, of int32) *corev3.RuntimeFractionalPercent {
	millionths := uint32(int64(n) * 1_000_000 / int64(of))
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: millionths, Denominator: typev3.FractionalPercent_MILLION}}
}
