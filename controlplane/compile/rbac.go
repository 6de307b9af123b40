package compile

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	security "istio.io/api/security/v1beta1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// l7 translates one AuthorizationPolicy to Envoy's RBAC rules.
type l7 struct {
	policy *source.AuthorizationPolicy
	tcp    bool                        // only what a connection shows can be checked
	report func(field, message string) // told what cannot be enforced; may be nil
	lost   bool
}

// rbacAction is the effect of a translated policy.
type rbacAction uint8

const (
	rbacNone rbacAction = iota // AUDIT, dry run: nothing is enforced
	rbacAllow
	rbacDeny
)

// translate returns the policy's rules by their names.
func (t *l7) translate() (rbacAction, map[string]*rbacv3.Policy) {
	action := rbacAllow
	switch t.policy.Spec.GetAction() {
	case security.AuthorizationPolicy_ALLOW:
	case security.AuthorizationPolicy_DENY:
		action = rbacDeny
	case security.AuthorizationPolicy_AUDIT:
		t.say("spec.action", "AUDIT is not supported by waypoints; nothing is logged")
		return rbacNone, nil
	default:
		t.say("spec.action", t.policy.Spec.GetAction().String()+" is not supported by waypoints; everything it targets is denied")
		return rbacDeny, t.denyAll()
	}
	if t.policy.Annotations[AnnotationDryRun] == "true" {
		t.say(`metadata.annotations["istio.io/dry-run"]`, "dry run is not supported by waypoints; the policy is not enforced")
		return rbacNone, nil
	}
	if len(Validate(t.policy)) > 0 {
		return rbacDeny, t.denyAll()
	}
	out := map[string]*rbacv3.Policy{}
	for i, r := range t.policy.Spec.GetRules() {
		t.lost = false
		p := t.rule(fmt.Sprintf("spec.rules[%d]", i), r)
		if action == rbacDeny || !t.lost {
			out[t.ruleName(i)] = p
		}
	}
	return action, out
}

func (t *l7) denyAll() map[string]*rbacv3.Policy {
	return map[string]*rbacv3.Policy{t.ruleName(0): {Permissions: []*rbacv3.Permission{anyPermission()}, Principals: []*rbacv3.Principal{anyPrincipal()}}}
}

// ruleName is the form in which Istio names rules, which logs show.
func (t *l7) ruleName(i int) string {
	return fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", t.policy.Namespace, t.policy.Name, i)
}

func (t *l7) say(field, message string) {
	if t.report != nil {
		t.report(field, message)
	}
}

// lose notes an attribute that cannot be checked.
func (t *l7) lose(field string, values ...[]string) {
	n := 0
	for _, v := range values {
		n += len(v)
	}
	if n == 0 {
		return
	}
	t.lost = true
	if t.policy.Spec.GetAction() == security.AuthorizationPolicy_DENY {
		t.say(field, "waypoints cannot check it; the rule denies without regard to it, so more is denied")
	} else {
		t.say(field, "waypoints cannot check it; the rule is left out, so less is allowed")
	}
}

func (t *l7) rule(field string, r *security.Rule) *rbacv3.Policy {
	var permissions []*rbacv3.Permission
	var principals []*rbacv3.Principal
	for i, w := range r.GetWhen() {
		perm, id := t.when(fmt.Sprintf("%s.when[%d]", field, i), w)
		permissions, principals = append(permissions, perm...), append(principals, id...)
	}
	var ops []*rbacv3.Permission
	for i, to := range r.GetTo() {
		ops = append(ops, allPermissions(t.operation(fmt.Sprintf("%s.to[%d].operation", field, i), to.GetOperation())))
	}
	if len(ops) > 0 {
		permissions = append(permissions, anyOfPermissions(ops))
	}
	var sources []*rbacv3.Principal
	for i, from := range r.GetFrom() {
		sources = append(sources, allPrincipals(t.source(fmt.Sprintf("%s.from[%d].source", field, i), from.GetSource())))
	}
	if len(sources) > 0 {
		principals = append(principals, anyOfPrincipals(sources))
	}
	return &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{allPermissions(permissions)},
		Principals:  []*rbacv3.Principal{allPrincipals(principals)},
	}
}

// operation returns what must all hold of the request.
func (t *l7) operation(field string, o *security.Operation) []*rbacv3.Permission {
	var out []*rbacv3.Permission
	out = permit(out, o.GetPorts(), o.GetNotPorts(), portPermission)
	if t.tcp {
		t.lose(field+".hosts", o.GetHosts(), o.GetNotHosts())
		t.lose(field+".methods", o.GetMethods(), o.GetNotMethods())
		t.lose(field+".paths", o.GetPaths(), o.GetNotPaths())
		return out
	}
	out = permit(out, o.GetHosts(), o.GetNotHosts(), func(v string) *rbacv3.Permission { return headerPermission(":authority", v, true) })
	out = permit(out, o.GetMethods(), o.GetNotMethods(), func(v string) *rbacv3.Permission { return headerPermission(":method", v, false) })
	return permit(out, o.GetPaths(), o.GetNotPaths(), pathPermission)
}

// source returns what must all hold of the peer.
func (t *l7) source(field string, s *security.Source) []*rbacv3.Principal {
	t.lose(field+".requestPrincipals", s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
	t.lose(field+".remoteIpBlocks", s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
	var out []*rbacv3.Principal
	out = identify(out, s.GetPrincipals(), s.GetNotPrincipals(), principalName)
	out = identify(out, s.GetTrustDomains(), s.GetNotTrustDomains(), domainPrincipal)
	out = identify(out, s.GetNamespaces(), s.GetNotNamespaces(), namespacePrincipal)
	out = identify(out, s.GetServiceAccounts(), s.GetNotServiceAccounts(), t.accountPrincipal)
	return identify(out, s.GetIpBlocks(), s.GetNotIpBlocks(), addressPrincipal)
}

func (t *l7) when(field string, w *security.Condition) ([]*rbacv3.Permission, []*rbacv3.Principal) {
	in, not := w.GetValues(), w.GetNotValues()
	if name, ok := headerKey(w.GetKey()); ok && !t.tcp {
		return nil, identify(nil, in, not, func(v string) *rbacv3.Principal {
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: headerMatcher(name, v, false)}}
		})
	}
	switch w.GetKey() {
	case "source.ip":
		return nil, identify(nil, in, not, addressPrincipal)
	case "source.namespace":
		return nil, identify(nil, in, not, namespacePrincipal)
	case "source.principal":
		return nil, identify(nil, in, not, principalName)
	case "source.serviceAccount":
		return nil, identify(nil, in, not, t.accountPrincipal)
	case "destination.port":
		return permit(nil, in, not, portPermission), nil
	case "destination.ip":
		return permit(nil, in, not, addressPermission), nil
	}
	t.lose(field+".key", []string{w.GetKey()})
	return nil, nil
}

// headerKey returns the name in "request.headers[name]".
func headerKey(key string) (string, bool) {
	name, ok := strings.CutPrefix(key, "request.headers[")
	if !ok || !strings.HasSuffix(name, "]") {
		return "", false
	}
	return strings.ToLower(strings.TrimSuffix(name, "]")), true
}

// permit adds: one of in, none of not.
func permit(out []*rbacv3.Permission, in, not []string, f func(string) *rbacv3.Permission) []*rbacv3.Permission {
	list := func(values []string) *rbacv3.Permission {
		var any []*rbacv3.Permission
		for _, v := range values {
			any = append(any, f(v))
		}
		return anyOfPermissions(any)
	}
	if len(in) > 0 {
		out = append(out, list(in))
	}
	if len(not) > 0 {
		out = append(out, &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: list(not)}})
	}
	return out
}

// identify adds: one of in, none of not.
func identify(out []*rbacv3.Principal, in, not []string, f func(string) *rbacv3.Principal) []*rbacv3.Principal {
	list := func(values []string) *rbacv3.Principal {
		var any []*rbacv3.Principal
		for _, v := range values {
			any = append(any, f(v))
		}
		return anyOfPrincipals(any)
	}
	if len(in) > 0 {
		out = append(out, list(in))
	}
	if len(not) > 0 {
		out = append(out, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: list(not)}})
	}
	return out
}

func anyPermission() *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
}

func anyPrincipal() *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
}

func allPermissions(p []*rbacv3.Permission) *rbacv3.Permission {
	switch len(p) {
	case 0:
		return anyPermission()
	case 1:
		return p[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: p}}}
}

func anyOfPermissions(p []*rbacv3.Permission) *rbacv3.Permission {
	if len(p) == 1 {
		return p[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: p}}}
}

func allPrincipals(p []*rbacv3.Principal) *rbacv3.Principal {
	switch len(p) {
	case 0:
		return anyPrincipal()
	case 1:
		return p[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: p}}}
}

func anyOfPrincipals(p []*rbacv3.Principal) *rbacv3.Principal {
	if len(p) == 1 {
		return p[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: p}}}
}

func portPermission(v string) *rbacv3.Permission {
	n, _ := strconv.ParseUint(v, 10, 16)
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(n)}}
}

func addressPermission(v string) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: cidr(v)}}
}

func headerPermission(name, v string, fold bool) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: headerMatcher(name, v, fold)}}
}

func pathPermission(v string) *rbacv3.Permission {
	m := envoyString(stringMatch(v), "", false)
	if isTemplate(v) {
		m = regex(templateRegex(v))
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}

func addressPrincipal(v string) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: cidr(v)}}
}

func cidr(v string) *corev3.CidrRange {
	p, err := parsePrefix(v)
	if err != nil {
		p = netip.Prefix{} // Validate lets none through
	}
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(max(p.Bits(), 0)))}
}

func principalName(v string) *rbacv3.Principal {
	return authenticated(envoyString(stringMatch(v), "spiffe://", false))
}

func authenticated(m *matcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m}}}
}

func domainPrincipal(v string) *rbacv3.Principal {
	return authenticated(regex("spiffe://" + segment(v) + "/.+"))
}

func namespacePrincipal(v string) *rbacv3.Principal {
	return authenticated(regex("spiffe://[^/]+/ns/" + segment(v) + "/sa/[^/]+"))
}

func (t *l7) accountPrincipal(v string) *rbacv3.Principal {
	a := accounts(t.policy.Namespace, []string{v})[0]
	return authenticated(regex("spiffe://[^/]+/ns/" + regexp.QuoteMeta(a.Namespace) + "/sa/" + regexp.QuoteMeta(a.ServiceAccount)))
}

// segment is a pattern for one part of an identity.
func segment(v string) string {
	m := stringMatch(v)
	switch m.Kind {
	case mesh.MatchPresence:
		return "[^/]+"
	case mesh.MatchPrefix:
		return regexp.QuoteMeta(m.Value) + "[^/]*"
	case mesh.MatchSuffix:
		return "[^/]*" + regexp.QuoteMeta(m.Value)
	}
	return regexp.QuoteMeta(m.Value)
}

func regex(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}}
}

// envoyString translates a match; prefix is put before values that are compared
// from the beginning.
func envoyString(m mesh.StringMatch, prefix string, fold bool) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: fold}
	switch m.Kind {
	case mesh.MatchPresence:
		return regex(".+")
	case mesh.MatchPrefix:
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: prefix + m.Value}
	case mesh.MatchSuffix:
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: m.Value}
	default:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: prefix + m.Value}
	}
	return out
}

func headerMatcher(name, v string, fold bool) *routev3.HeaderMatcher {
	m := stringMatch(v)
	if m.Kind == mesh.MatchPresence {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: envoyString(m, "", fold)}}
}
