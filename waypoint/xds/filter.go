package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/filter/rbac"
	"github.com/culvert-mesh/culvert/waypoint/match"
)

func unpack(a *anypb.Any, m proto.Message, path string) error {
	if err := a.UnmarshalTo(m); err != nil {
		return at(path, err)
	}
	return strict(m.ProtoReflect(), path)
}

func decodeHTTPFilters(list []*anypb.Any) (out filter.Chain, err error) {
	for i, a := range list {
		path := fmt.Sprintf("http_filters[%d]", i)
		var f hcmv3.HttpFilter
		if err := unpack(a, &f, path); err != nil {
			return nil, err
		}
		path += ".typed_config"
		cfg := f.GetTypedConfig()
		switch {
		case cfg.MessageIs((*routerv3.Router)(nil)): // implied
			continue
		case !cfg.MessageIs((*httprbacv3.RBAC)(nil)):
			return nil, fmt.Errorf("%s: filter %q of type %q is not supported", path, f.GetName(), cfg.GetTypeUrl())
		}
		var r httprbacv3.RBAC
		if err := unpack(cfg, &r, path); err != nil {
			return nil, err
		}
		x, err := decodeRBAC(f.GetName(), r.GetRules(), r.GetShadowRules())
		if err != nil {
			return nil, at(path, err)
		}
		out = append(out, x)
	}
	return out, nil
}

func decodeNetworkFilters(list []*anypb.Any) (out filter.Network, err error) {
	for i, a := range list {
		path := fmt.Sprintf("network_filters[%d]", i)
		var f listenerv3.Filter
		if err := unpack(a, &f, path); err != nil {
			return nil, err
		}
		path += ".typed_config"
		if !f.GetTypedConfig().MessageIs((*netrbacv3.RBAC)(nil)) {
			return nil, fmt.Errorf("%s: filter %q of type %q is not supported", path, f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
		var r netrbacv3.RBAC
		if err := unpack(f.GetTypedConfig(), &r, path); err != nil {
			return nil, err
		}
		x, err := decodeRBAC(f.GetName(), r.GetRules(), r.GetShadowRules())
		if err != nil {
			return nil, at(path, err)
		}
		out = append(out, x)
	}
	return out, nil
}

func decodeRBAC(name string, rules, shadow *rbacv3.RBAC) (*rbac.RBAC, error) {
	cfg := rbac.Config{FilterName: name}
	var err error
	if cfg.Rules, err = decodeRules(rules); err != nil {
		return nil, at("rules", err)
	}
	if cfg.Shadow, err = decodeRules(shadow); err != nil {
		return nil, at("shadow_rules", err)
	}
	return rbac.New(cfg), nil
}

func decodeRules(m *rbacv3.RBAC) (*rbac.Rules, error) {
	if m == nil {
		return nil, nil
	}
	out := &rbac.Rules{}
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
	case rbacv3.RBAC_DENY:
		out.Action = rbac.Deny
	case rbacv3.RBAC_LOG:
		out.Action = rbac.Log
	default:
		return nil, fmt.Errorf("action: %v is not supported", m.GetAction())
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetPolicies())) {
		p, err := decodePolicy(name, m.GetPolicies()[name])
		if err != nil {
			return nil, at(fmt.Sprintf("policies[%q]", name), err)
		}
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}

func decodePolicy(name string, m *rbacv3.Policy) (p rbac.Policy, err error) {
	p.Name = name
	if p.Permissions, err = each(m.GetPermissions(), "permissions", decodePermission); err != nil {
		return p, err
	}
	p.Principals, err = each(m.GetPrincipals(), "principals", decodePrincipal)
	return p, err
}

func each[M any](list []M, path string, f func(M) (rbac.Rule, error)) (out []rbac.Rule, err error) {
	for i, m := range list {
		r, err := f(m)
		if err != nil {
			return nil, at(fmt.Sprintf("%s[%d]", path, i), err)
		}
		out = append(out, r)
	}
	return out, nil
}

func decodePermission(m *rbacv3.Permission) (rbac.Rule, error) {
	switch r := m.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return anyRule(r.Any)
	case *rbacv3.Permission_AndRules:
		list, err := each(r.AndRules.GetRules(), "and_rules.rules", decodePermission)
		return rbac.And(list), err
	case *rbacv3.Permission_OrRules:
		list, err := each(r.OrRules.GetRules(), "or_rules.rules", decodePermission)
		return rbac.Or(list), err
	case *rbacv3.Permission_NotRule:
		x, err := decodePermission(r.NotRule)
		return rbac.Not{Rule: x}, at("not_rule", err)
	case *rbacv3.Permission_Header:
		h, err := decodeHeader(r.Header)
		return rbac.Header{Header: h}, at("header", err)
	case *rbacv3.Permission_UrlPath:
		return decodePath(r.UrlPath)
	case *rbacv3.Permission_UriTemplate:
		var t templatev3.UriTemplateMatchConfig
		if err := unpack(r.UriTemplate.GetTypedConfig(), &t, "uri_template.typed_config"); err != nil {
			return nil, err
		}
		p, ok := rbac.NewPathTemplate(t.GetPathTemplate())
		if !ok {
			return nil, fmt.Errorf("uri_template: %q is not supported", t.GetPathTemplate())
		}
		return p, nil
	case *rbacv3.Permission_DestinationIp:
		p, err := decodePrefix(r.DestinationIp)
		return rbac.DestinationIP{Prefix: p}, at("destination_ip", err)
	case *rbacv3.Permission_DestinationPort:
		return portRule(r.DestinationPort, r.DestinationPort)
	case *rbacv3.Permission_DestinationPortRange:
		lo, hi := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		return portRule(uint32(lo), uint32(hi-1)) // the end is not included
	}
	return nil, errors.New("rule: required")
}

func portRule(lo, hi uint32) (rbac.Rule, error) {
	if lo > 65535 || hi > 65535 {
		return nil, fmt.Errorf("destination_port: %d to %d is not a range of ports", lo, hi)
	}
	return rbac.DestinationPort{First: uint16(lo), Last: uint16(hi)}, nil
}

func anyRule(v bool) (rbac.Rule, error) {
	if !v {
		return nil, errors.New("any: must be true")
	}
	return rbac.Any{}, nil
}

func decodePath(m *matcherv3.PathMatcher) (rbac.Rule, error) {
	s, err := decodeString(m.GetPath())
	return rbac.Path{String: s}, at("url_path.path", err)
}

// peerPrincipal is where upstream's waypoint keeps the client's identity.
const peerPrincipal = "io.istio.peer_principal"

func decodePrincipal(m *rbacv3.Principal) (rbac.Rule, error) {
	switch r := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return anyRule(r.Any)
	case *rbacv3.Principal_AndIds:
		list, err := each(r.AndIds.GetIds(), "and_ids.ids", decodePrincipal)
		return rbac.And(list), err
	case *rbacv3.Principal_OrIds:
		list, err := each(r.OrIds.GetIds(), "or_ids.ids", decodePrincipal)
		return rbac.Or(list), err
	case *rbacv3.Principal_NotId:
		x, err := decodePrincipal(r.NotId)
		return rbac.Not{Rule: x}, at("not_id", err)
	case *rbacv3.Principal_Authenticated_:
		return decodeAuthenticated(r.Authenticated.GetPrincipalName(), "authenticated.principal_name")
	case *rbacv3.Principal_FilterState:
		if r.FilterState.GetKey() != peerPrincipal {
			return nil, fmt.Errorf("filter_state.key: %q is not supported", r.FilterState.GetKey())
		}
		return decodeAuthenticated(r.FilterState.GetStringMatch(), "filter_state.string_match")
	case *rbacv3.Principal_DirectRemoteIp:
		p, err := decodePrefix(r.DirectRemoteIp)
		return rbac.SourceIP{Prefix: p}, at("direct_remote_ip", err)
	case *rbacv3.Principal_Header:
		h, err := decodeHeader(r.Header)
		return rbac.Header{Header: h}, at("header", err)
	case *rbacv3.Principal_UrlPath:
		return decodePath(r.UrlPath)
	}
	return nil, errors.New("identifier: required")
}

func decodeAuthenticated(m *matcherv3.StringMatcher, path string) (rbac.Rule, error) {
	if m == nil {
		return rbac.Authenticated{Name: match.String{}}, nil
	}
	s, err := decodeString(m)
	return rbac.Authenticated{Name: s}, at(path, err)
}
