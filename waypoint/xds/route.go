package xds

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/culvert-mesh/culvert/waypoint/config"
)

// defaultTimeout is Envoy's for a route that names none; zero means no timeout.
const defaultTimeout = 15 * time.Second

func decodeRoutes(m *routev3.RouteConfiguration) (*config.RouteTable, error) {
	t := &config.RouteTable{Name: m.GetName(), IgnorePort: m.GetIgnorePortInHostMatching()}
	req, resp, err := decodeMods(m)
	if err != nil {
		return nil, err
	}
	for i, vh := range m.GetVirtualHosts() {
		h, err := decodeHost(vh, req, resp)
		if err != nil {
			return nil, at(fmt.Sprintf("virtual_hosts[%d]", i), err)
		}
		t.Hosts = append(t.Hosts, h)
	}
	return t, nil
}

func decodeHost(m *routev3.VirtualHost, tableReq, tableResp config.HeaderMods) (h config.VirtualHost, err error) {
	h = config.VirtualHost{Name: m.GetName(), Domains: m.GetDomains()}
	if len(h.Domains) == 0 {
		return h, errors.New("domains: required")
	}
	req, resp, err := decodeMods(m)
	if err != nil {
		return h, err
	}
	for i, r := range m.GetRoutes() {
		route, err := decodeRoute(r)
		if err != nil {
			return h, at(fmt.Sprintf("routes[%d]", i), err)
		}
		route.RequestMods = nonEmpty(route.RequestMods, req, tableReq)
		route.ResponseMods = nonEmpty(route.ResponseMods, resp, tableResp)
		h.Routes = append(h.Routes, route)
	}
	return h, nil
}

// nonEmpty appends changes from the narrow to the wide: Envoy's default order, in
// which the widest has the last word.
func nonEmpty(mods []config.HeaderMods, more ...config.HeaderMods) []config.HeaderMods {
	for _, m := range more {
		if !m.Empty() {
			mods = append(mods, m)
		}
	}
	return mods
}

func decodeRoute(m *routev3.Route) (r config.Route, err error) {
	r.Name = m.GetName()
	if err := decodeMatch(m.GetMatch(), &r); err != nil {
		return r, at("match", err)
	}
	req, resp, err := decodeMods(m)
	if err != nil {
		return r, err
	}
	r.RequestMods, r.ResponseMods = nonEmpty(nil, req), nonEmpty(nil, resp)
	switch a := m.GetAction().(type) {
	case *routev3.Route_Route:
		r.Forward, err = decodeForward(a.Route)
		err = at("route", err)
	case *routev3.Route_Redirect:
		r.Redirect, err = decodeRedirect(a.Redirect)
		err = at("redirect", err)
	case *routev3.Route_DirectResponse:
		r.Direct, err = decodeDirect(a.DirectResponse)
		err = at("direct_response", err)
	default:
		err = errors.New("action: required")
	}
	return r, err
}

func decodeMatch(m *routev3.RouteMatch, r *config.Route) (err error) {
	if m == nil {
		return errors.New("required")
	}
	r.Path.IgnoreCase = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		r.Path.Kind, r.Path.Value = config.PathPrefix, p.Prefix
	case *routev3.RouteMatch_Path:
		r.Path.Kind, r.Path.Value = config.PathExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		r.Path.Kind, r.Path.Value = config.PathSeparatedPrefix, p.PathSeparatedPrefix
		if !strings.HasPrefix(p.PathSeparatedPrefix, "/") || strings.HasSuffix(p.PathSeparatedPrefix, "/") {
			return errors.New("path_separated_prefix: must begin and must not end with '/'")
		}
	case *routev3.RouteMatch_SafeRegex:
		s, err := decodeRegex(p.SafeRegex)
		if err != nil {
			return at("safe_regex", err)
		}
		r.Path.Kind, r.Path.Value, r.Path.Regexp = config.PathRegex, s.Value, s.Regexp
	default:
		return errors.New("path: required")
	}
	for i, h := range m.GetHeaders() {
		x, err := decodeHeader(h)
		if err != nil {
			return at(fmt.Sprintf("headers[%d]", i), err)
		}
		r.Headers = append(r.Headers, x)
	}
	for i, q := range m.GetQueryParameters() {
		x, err := decodeQuery(q)
		if err != nil {
			return at(fmt.Sprintf("query_parameters[%d]", i), err)
		}
		r.Query = append(r.Query, x)
	}
	return nil
}

func decodeForward(m *routev3.RouteAction) (*config.Forward, error) {
	f := &config.Forward{Timeout: defaultTimeout, PrefixRewrite: m.GetPrefixRewrite(), HostRewrite: m.GetHostRewriteLiteral()}
	if m.GetTimeout() != nil {
		f.Timeout = m.GetTimeout().AsDuration()
	}
	switch m.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
		f.NoCluster = 503
	case routev3.RouteAction_NOT_FOUND:
		f.NoCluster = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NoCluster = 500
	default:
		return nil, fmt.Errorf("cluster_not_found_response_code: %v is not supported", m.GetClusterNotFoundResponseCode())
	}
	if f.Timeout < 0 {
		return nil, errors.New("timeout: negative")
	}
	if rw := m.GetRegexRewrite(); rw != nil {
		re, err := regexp.Compile(rw.GetPattern().GetRegex())
		if err != nil {
			return nil, at("regex_rewrite.pattern.regex", err)
		}
		f.RegexRewrite, f.Substitution = re, goSubstitution(rw.GetSubstitution())
	}
	var err error
	if f.Retry, err = decodeRetry(m.GetRetryPolicy()); err != nil {
		return nil, at("retry_policy", err)
	}
	if f.Mirrors, err = decodeMirrors(m.GetRequestMirrorPolicies()); err != nil {
		return nil, at("request_mirror_policies", err)
	}
	switch c := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		f.Clusters, f.TotalWeight = []config.WeightedCluster{{Name: c.Cluster, Weight: 1}}, 1
	case *routev3.RouteAction_WeightedClusters:
		if err := decodeWeights(c.WeightedClusters, f); err != nil {
			return nil, at("weighted_clusters", err)
		}
	default:
		return nil, errors.New("cluster: required")
	}
	return f, nil
}

func decodeWeights(m *routev3.WeightedCluster, f *config.Forward) error {
	for i, c := range m.GetClusters() {
		req, resp, err := decodeMods(c)
		if err != nil {
			return at(fmt.Sprintf("clusters[%d]", i), err)
		}
		w := config.WeightedCluster{Name: c.GetName(), Weight: c.GetWeight().GetValue()}
		if !req.Empty() {
			w.RequestMods = &req
		}
		if !resp.Empty() {
			w.ResponseMods = &resp
		}
		if f.TotalWeight+w.Weight < f.TotalWeight {
			return fmt.Errorf("clusters[%d].weight: sum of weights overflows", i)
		}
		f.Clusters, f.TotalWeight = append(f.Clusters, w), f.TotalWeight+w.Weight
	}
	if len(f.Clusters) == 0 {
		return errors.New("clusters: required")
	}
	return nil
}

// goSubstitution turns \1 into ${1} and takes $ literally.
func goSubstitution(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] == '\\' && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			b.WriteString("${" + s[i+1:i+2] + "}")
			i++
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func decodeRedirect(m *routev3.RedirectAction) (*config.Redirect, error) {
	r := &config.Redirect{Host: m.GetHostRedirect(), Port: m.GetPortRedirect(), Path: m.GetPathRedirect(),
		PrefixRewrite: m.GetPrefixRewrite(), StripQuery: m.GetStripQuery(), Scheme: m.GetSchemeRedirect()}
	if m.GetHttpsRedirect() {
		r.Scheme = "https"
	}
	codes := map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
		routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308}
	if r.Status = codes[m.GetResponseCode()]; r.Status == 0 {
		return nil, fmt.Errorf("response_code: %v is not supported", m.GetResponseCode())
	}
	return r, nil
}

func decodeDirect(m *routev3.DirectResponseAction) (*config.Direct, error) {
	d := &config.Direct{Status: int(m.GetStatus()), Body: m.GetBody().GetInlineBytes()}
	if s := m.GetBody().GetInlineString(); s != "" {
		d.Body = []byte(s)
	}
	if d.Status < 200 || d.Status > 599 {
		return nil, fmt.Errorf("status: %d is not a final status", d.Status)
	}
	return d, nil
}

// modified is what routes, virtual hosts, tables and weighted clusters share.
type modified interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func decodeMods(m modified) (req, resp config.HeaderMods, err error) {
	if req.Set, err = decodeSet(m.GetRequestHeadersToAdd()); err != nil {
		return req, resp, at("request_headers_to_add", err)
	}
	if resp.Set, err = decodeSet(m.GetResponseHeadersToAdd()); err != nil {
		return req, resp, at("response_headers_to_add", err)
	}
	if req.Remove, err = decodeRemove(m.GetRequestHeadersToRemove()); err != nil {
		return req, resp, at("request_headers_to_remove", err)
	}
	resp.Remove, err = decodeRemove(m.GetResponseHeadersToRemove())
	return req, resp, at("response_headers_to_remove", err)
}

func decodeSet(list []*corev3.HeaderValueOption) (out []config.HeaderMod, err error) {
	for i, o := range list {
		mod := config.HeaderMod{Name: strings.ToLower(o.GetHeader().GetKey())}
		if mod.Value, err = literal(o.GetHeader()); err == nil {
			err = checkName(mod.Name)
		}
		if err != nil {
			return nil, at(fmt.Sprintf("[%d].header", i), err)
		}
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			mod.Kind = config.ModOverwrite
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			mod.Kind = config.ModIfAbsent
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			mod.Kind = config.ModIfPresent
		}
		out = append(out, mod)
	}
	return out, nil
}

// literal returns a header's value, in which %% stands for a percent sign; other
// uses are Envoy's substitutions.
func literal(h *corev3.HeaderValue) (string, error) {
	v := h.GetValue()
	if v == "" {
		v = string(h.GetRawValue())
	}
	if strings.ContainsAny(v, "\r\n\x00") {
		return "", errors.New("value: control character")
	}
	if strings.Contains(strings.ReplaceAll(v, "%%", ""), "%") {
		return "", errors.New("value: substitution commands are not supported")
	}
	return strings.ReplaceAll(v, "%%", "%"), nil
}

func checkName(name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, " \t\r\n\x00"):
		return fmt.Errorf("key: %q is not a header name", name)
	case name == ":authority":
		return nil
	case name[0] == ':', framingField(name):
		return fmt.Errorf("key: %q cannot be changed", name)
	}
	return nil
}

func framingField(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive", "proxy-connection", "te", "trailer", "expect":
		return true
	}
	return false
}

func decodeRemove(names []string) (out []string, err error) {
	for i, n := range names {
		n = strings.ToLower(n)
		if n == "host" || strings.HasPrefix(n, ":") {
			return nil, fmt.Errorf("[%d]: %q cannot be removed", i, n)
		}
		out = append(out, n)
	}
	return out, nil
}
