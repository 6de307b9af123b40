package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// targets returns the objects that a policy names; one that names none is for
// ztunnels.
func targets(p *source.AuthorizationPolicy) []*typev1beta1.PolicyTargetReference {
	if refs := p.Spec.GetTargetRefs(); len(refs) > 0 {
		return refs
	}
	if ref := p.Spec.GetTargetRef(); ref != nil {
		return []*typev1beta1.PolicyTargetReference{ref}
	}
	return nil
}

// scope says which workloads a policy without targets applies to.
func (m Mesh) scope(p *source.AuthorizationPolicy) mesh.Scope {
	switch {
	case len(p.Spec.GetSelector().GetMatchLabels()) > 0:
		return mesh.ScopeWorkloadSelector
	case p.Namespace == m.RootNamespace:
		return mesh.ScopeGlobal
	}
	return mesh.ScopeNamespace
}

// SelectsSame reports whether two versions of an object are known to select the same,
// so that nobody who asked for Names need be asked again. Rules change more often
// than what they are for.
func SelectsSame(a, b source.Object) bool {
	p, ok := a.(*source.AuthorizationPolicy)
	q, same := b.(*source.AuthorizationPolicy)
	return ok && same && p.Spec.GetAction() == q.Spec.GetAction() &&
		maps.Equal(p.Spec.GetSelector().GetMatchLabels(), q.Spec.GetSelector().GetMatchLabels()) &&
		slices.EqualFunc(targets(p), targets(q), func(x, y *typev1beta1.PolicyTargetReference) bool { return proto.Equal(x, y) })
}

// authorization compiles an AuthorizationPolicy for ztunnel, or judges the
// targets of one for waypoints.
func (c *compilation) authorization(p *source.AuthorizationPolicy) {
	if len(targets(p)) > 0 {
		c.targeted(p)
		return
	}
	out := &mesh.Policy{
		Name:   mesh.PolicyName{Namespace: p.Namespace, Name: p.Name},
		Scope:  c.mesh.scope(p),
		DryRun: p.Annotations[AnnotationDryRun] == "true",
	}
	switch p.Spec.GetAction() {
	case security.AuthorizationPolicy_ALLOW:
	case security.AuthorizationPolicy_DENY:
		out.Action = mesh.Deny
	case security.AuthorizationPolicy_AUDIT:
		c.bad(ZtunnelAccepted, reason.Unsupported, "spec.action", "AUDIT needs a waypoint (targetRefs); nothing is logged")
		return
	default:
		c.bad(ZtunnelAccepted, reason.Unsupported, "spec.action", p.Spec.GetAction().String()+" needs a waypoint (targetRefs); until then all traffic to what it selects is denied")
		out.Action, out.Rules = mesh.Deny, []mesh.Rule{{}}
		c.out.Policies = append(c.out.Policies, out)
		return
	}
	if c.invalid(p) {
		out.Action, out.Rules = mesh.Deny, []mesh.Rule{{}}
		c.out.Policies = append(c.out.Policies, out)
		return
	}
	t := &l4{c: c, policy: p, deny: out.Action == mesh.Deny}
	for i, r := range p.Spec.GetRules() {
		if rule, ok := t.rule(i, r); ok {
			out.Rules = append(out.Rules, rule)
		}
	}
	c.settled(ZtunnelAccepted)
	c.out.Policies = append(c.out.Policies, out)
}

// invalid reports what is wrong with a policy by itself, and what that means: it
// is in force only when it never had a valid version, and then denies everything.
func (c *compilation) invalid(p *source.AuthorizationPolicy) bool {
	problems := Validate(p)
	enforced := p.Spec.GetAction() != security.AuthorizationPolicy_AUDIT && p.Annotations[AnnotationDryRun] != "true"
	for _, problem := range problems {
		if enforced {
			problem.Message += "; until it is corrected all traffic to what the policy selects is denied"
		}
		c.out.Conditions = append(c.out.Conditions, problem)
	}
	return len(problems) > 0
}

// l4 translates rules to what can be decided from a connection alone.
type l4 struct {
	c      *compilation
	policy *source.AuthorizationPolicy
	deny   bool
	lost   bool // the rule at hand names something that needs a request
}

// rule translates one rule. It is ok when the rule may be sent: an ALLOW rule
// that lost a part would allow too much and is not.
func (t *l4) rule(i int, r *security.Rule) (mesh.Rule, bool) {
	field := fmt.Sprintf("spec.rules[%d]", i)
	t.lost = false
	var out mesh.Rule
	t.add(&out, collect(r.GetTo(), func(j int, to *security.Rule_To) mesh.Match {
		return t.operation(fmt.Sprintf("%s.to[%d].operation", field, j), to.GetOperation())
	}))
	t.add(&out, collect(r.GetFrom(), func(j int, from *security.Rule_From) mesh.Match {
		return t.source(fmt.Sprintf("%s.from[%d].source", field, j), from.GetSource())
	}))
	for j, w := range r.GetWhen() {
		t.add(&out, []mesh.Match{t.when(fmt.Sprintf("%s.when[%d]", field, j), w)})
	}
	return out, t.deny || !t.lost
}

func collect[T any](list []T, f func(int, T) mesh.Match) []mesh.Match {
	out := make([]mesh.Match, len(list))
	for i, v := range list {
		out[i] = f(i, v)
	}
	return out
}

// add appends a clause. An alternative from which everything was lost matches
// any connection, and then so does the clause.
func (t *l4) add(r *mesh.Rule, matches []mesh.Match) {
	if len(matches) == 0 || slices.ContainsFunc(matches, empty) {
		return
	}
	r.Clauses = append(r.Clauses, mesh.Clause{Matches: matches})
}

func empty(m mesh.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+len(m.ServiceAccounts)+
		len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+len(m.DestinationIPs)+len(m.NotDestinationIPs)+
		len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}

// lose notes an attribute that ztunnel cannot see.
func (t *l4) lose(field string, values ...[]string) {
	n := 0
	for _, v := range values {
		n += len(v)
	}
	if n > 0 {
		t.without(field, "ztunnel sees connections, not requests")
	}
}

// without notes what is not enforced, and why.
func (t *l4) without(field, why string) {
	t.lost = true
	effect := "the rule is left out, so less is allowed"
	if t.deny {
		effect = "the rule denies without regard to it, so more is denied"
	}
	t.c.partly(ZtunnelAccepted, reason.Unsupported, field, "needs a waypoint (targetRefs): "+why+"; "+effect)
}

func (t *l4) operation(field string, o *security.Operation) mesh.Match {
	t.lose(field+".hosts", o.GetHosts(), o.GetNotHosts())
	t.lose(field+".methods", o.GetMethods(), o.GetNotMethods())
	t.lose(field+".paths", o.GetPaths(), o.GetNotPaths())
	return mesh.Match{DestinationPorts: ports(o.GetPorts()), NotDestinationPorts: ports(o.GetNotPorts())}
}

func (t *l4) source(field string, s *security.Source) mesh.Match {
	t.lose(field+".requestPrincipals", s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
	t.lose(field+".remoteIpBlocks", s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
	ns := t.policy.Namespace
	return mesh.Match{
		Principals:    t.domains(field+".trustDomains", s.GetTrustDomains(), s.GetPrincipals()),
		NotPrincipals: t.domains(field+".notTrustDomains", s.GetNotTrustDomains(), s.GetNotPrincipals()),
		Namespaces:    stringMatches(s.GetNamespaces()), NotNamespaces: stringMatches(s.GetNotNamespaces()),
		ServiceAccounts: accounts(ns, s.GetServiceAccounts()), NotServiceAccounts: accounts(ns, s.GetNotServiceAccounts()),
		SourceIPs: prefixes(s.GetIpBlocks()), NotSourceIPs: prefixes(s.GetNotIpBlocks()),
	}
}

func (t *l4) when(field string, w *security.Condition) mesh.Match {
	in, not := w.GetValues(), w.GetNotValues()
	switch w.GetKey() {
	case "source.ip":
		return mesh.Match{SourceIPs: prefixes(in), NotSourceIPs: prefixes(not)}
	case "source.namespace":
		return mesh.Match{Namespaces: stringMatches(in), NotNamespaces: stringMatches(not)}
	case "source.principal":
		return mesh.Match{Principals: stringMatches(in), NotPrincipals: stringMatches(not)}
	case "source.serviceAccount":
		return mesh.Match{ServiceAccounts: accounts(t.policy.Namespace, in), NotServiceAccounts: accounts(t.policy.Namespace, not)}
	case "destination.ip":
		return mesh.Match{DestinationIPs: prefixes(in), NotDestinationIPs: prefixes(not)}
	case "destination.port":
		return mesh.Match{DestinationPorts: ports(in), NotDestinationPorts: ports(not)}
	}
	t.lose(field+".key", []string{w.GetKey()})
	return mesh.Match{}
}

// stringMatches translates Istio's patterns: "*" is presence, "*x" a suffix,
// "x*" a prefix, anything else exact.
func stringMatches(values []string) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, v := range values {
		out = append(out, stringMatch(v))
	}
	return out
}

func stringMatch(v string) mesh.StringMatch {
	switch {
	case v == "*":
		return mesh.StringMatch{Kind: mesh.MatchPresence}
	case strings.HasPrefix(v, "*"):
		return mesh.StringMatch{Kind: mesh.MatchSuffix, Value: v[1:]}
	case strings.HasSuffix(v, "*"):
		return mesh.StringMatch{Kind: mesh.MatchPrefix, Value: v[:len(v)-1]}
	}
	return mesh.StringMatch{Kind: mesh.MatchExact, Value: v}
}

// accounts translates "namespace/account", or "account" of the policy's own
// namespace.
func accounts(namespace string, values []string) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, v := range values {
		ns, sa, ok := strings.Cut(v, "/")
		if !ok {
			ns, sa = namespace, v
		}
		out = append(out, mesh.ServiceAccountMatch{Namespace: ns, ServiceAccount: sa})
	}
	return out
}

func prefixes(values []string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range values {
		if p, err := parsePrefix(v); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// parsePrefix parses an address or a CIDR.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func ports(values []string) []uint16 {
	var out []uint16
	for _, v := range values {
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	return out
}

// targeted judges a policy for waypoints: its rules are compiled into what it
// targets.
func (c *compilation) targeted(p *source.AuthorizationPolicy) {
	c.invalid(p)
	for i, ref := range targets(p) {
		field := fmt.Sprintf("spec.targetRefs[%d]", i)
		if len(p.Spec.GetTargetRefs()) == 0 {
			field = "spec.targetRef"
		}
		c.target(p, ref, field)
	}
	l := &l7{policy: p, report: func(field, message string) {
		if strings.HasPrefix(field, "spec.rules") {
			c.partly(WaypointAccepted, reason.Unsupported, field, message)
		} else {
			c.bad(WaypointAccepted, reason.Unsupported, field, message)
		}
	}}
	l.translate()
	c.settled(WaypointAccepted)
}

func (c *compilation) target(p *source.AuthorizationPolicy, ref *typev1beta1.PolicyTargetReference, field string) {
	key := source.Key{Kind: source.Kind(ref.GetKind()), Namespace: p.Namespace, Name: ref.GetName()}
	switch ref.GetKind() {
	case "Gateway":
		g, ok := c.view.Get(key).(*source.Gateway)
		if !ok || !IsWaypoint(g) {
			c.bad(WaypointAccepted, reason.TargetNotFound, field, fmt.Sprintf("no waypoint %s/%s: the policy is not enforced", p.Namespace, ref.GetName()))
		}
	case "Service", "ServiceEntry":
		f, ok := c.frontendAt(key)
		if !ok {
			c.bad(WaypointAccepted, reason.TargetNotFound, field, fmt.Sprintf("no service %s/%s: the policy is not enforced", p.Namespace, ref.GetName()))
			return
		}
		probe := &compilation{mesh: c.mesh, view: c.view, object: f.object}
		wp, chosen := probe.serviceWaypoint(f)
		switch {
		case wp == nil && chosen.Name != "":
			c.bad(WaypointAccepted, reason.NoWaypoint, field, fmt.Sprintf("waypoint %s/%s does not serve service %s/%s: its clients are refused", chosen.Namespace, chosen.Name, p.Namespace, ref.GetName()))
		case wp == nil:
			c.bad(WaypointAccepted, reason.NoWaypoint, field, fmt.Sprintf("service %s/%s has no waypoint: the policy is not enforced", p.Namespace, ref.GetName()))
		case wp.gateway == nil:
			c.bad(WaypointAccepted, reason.NoWaypoint, field, fmt.Sprintf("the waypoint of service %s/%s has no address yet: its clients are refused", p.Namespace, ref.GetName()))
		}
	case "GatewayClass":
		if p.Namespace != c.mesh.RootNamespace {
			c.bad(WaypointAccepted, reason.InvalidValue, field, "a GatewayClass is targeted from namespace "+c.mesh.RootNamespace+" only")
		}
	default:
		c.bad(WaypointAccepted, reason.Unsupported, field, "kind "+ref.GetKind()+" cannot be targeted")
	}
}
