package compile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Validate returns what is wrong with an object by itself, whatever else exists.
// An object with problems is not taken as a new version of one that had none.
func Validate(o source.Object) []Condition {
	v := &validation{object: o}
	switch o := o.(type) {
	case *source.Pod:
		for i, ip := range o.IPs {
			v.address(fmt.Sprintf("status.podIPs[%d].ip", i), ip)
		}
	case *source.Service:
		v.service(o)
	case *source.AuthorizationPolicy:
		v.authorization(o)
	case *source.PeerAuthentication:
		v.peerAuthentication(o)
	case *source.Gateway:
		for i, a := range o.Addresses {
			if a.Type == "IPAddress" {
				v.address(fmt.Sprintf("status.addresses[%d].value", i), a.Value)
			}
		}
	case *source.HTTPRoute, *source.GRPCRoute:
		v.route(routeOf(o))
	case *source.ServiceEntry:
		v.serviceEntry(o)
	case *source.WorkloadEntry:
		v.workloadEntry(o)
	}
	return v.out
}

// enforcer returns the type of condition that a policy has: who enforces it.
func enforcer(p *source.AuthorizationPolicy) string {
	if len(targets(p)) > 0 {
		return WaypointAccepted
	}
	return ZtunnelAccepted
}

type validation struct {
	object source.Object
	out    []Condition
}

func (v *validation) invalid(field, format string, args ...any) {
	kind := Accepted
	if p, ok := v.object.(*source.AuthorizationPolicy); ok {
		kind = enforcer(p)
	}
	v.out = append(v.out, condition(v.object, kind, reason.InvalidValue, field, fmt.Sprintf(format, args...)))
}

func (v *validation) address(field, s string) {
	if _, ok := source.ParseAddr(s); !ok {
		v.invalid(field, "%q is not an IP address", s)
	}
}

func (v *validation) port(field string, n int64) {
	if n < 1 || n > 65535 {
		v.invalid(field, "%d is not a port (1 to 65535)", n)
	}
}

func (v *validation) service(s *source.Service) {
	for i, ip := range s.ClusterIPs {
		if ip != "None" {
			v.address(fmt.Sprintf("spec.clusterIPs[%d]", i), ip)
		}
	}
	seen := map[string]bool{}
	for i, p := range s.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		v.port(field+".port", int64(p.Port))
		if p.TargetName == "" && p.TargetPort != 0 {
			v.port(field+".targetPort", int64(p.TargetPort))
		}
		key := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if seen[key] {
			v.invalid(field+".port", "port %s is given twice", key)
		}
		seen[key] = true
	}
}

func (v *validation) peerAuthentication(p *source.PeerAuthentication) {
	for port := range p.Spec.GetPortLevelMtls() {
		v.port(fmt.Sprintf(`spec.portLevelMtls["%d"]`, port), int64(port))
	}
}

func (v *validation) authorization(p *source.AuthorizationPolicy) {
	if len(targets(p)) > 0 && len(p.Spec.GetSelector().GetMatchLabels()) > 0 {
		v.invalid("spec.selector", "a policy has a selector or targetRefs, not both")
	}
	for i, r := range p.Spec.GetRules() {
		field := fmt.Sprintf("spec.rules[%d]", i)
		if r == nil {
			v.invalid(field, "must not be null")
			continue
		}
		for j, from := range r.GetFrom() {
			v.source(fmt.Sprintf("%s.from[%d].source", field, j), from.GetSource())
		}
		for j, to := range r.GetTo() {
			v.operation(fmt.Sprintf("%s.to[%d].operation", field, j), to.GetOperation())
		}
		for j, w := range r.GetWhen() {
			v.when(fmt.Sprintf("%s.when[%d]", field, j), w)
		}
	}
}

// values checks each value of a list.
func (v *validation) values(field string, values []string, check func(field, value string)) int {
	for i, s := range values {
		at := fmt.Sprintf("%s[%d]", field, i)
		if s == "" {
			v.invalid(at, "must not be empty")
		} else if check != nil {
			check(at, s)
		}
	}
	return len(values)
}

func (v *validation) cidr(field, s string) {
	if _, err := parsePrefix(s); err != nil {
		v.invalid(field, "%q is not an address or CIDR", s)
	}
}

func (v *validation) portText(field, s string) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		v.invalid(field, "%q is not a port", s)
		return
	}
	v.port(field, n)
}

func (v *validation) pattern(field, s string) {
	if s != "*" && strings.Contains(strings.TrimSuffix(strings.TrimPrefix(s, "*"), "*"), "*") ||
		len(s) > 1 && strings.HasPrefix(s, "*") && strings.HasSuffix(s, "*") {
		v.invalid(field, "%q: an asterisk may stand at the beginning or at the end only", s)
	}
}

func (v *validation) source(field string, s *security.Source) {
	n := v.values(field+".principals", s.GetPrincipals(), v.pattern) +
		v.values(field+".notPrincipals", s.GetNotPrincipals(), v.pattern) +
		v.values(field+".trustDomains", s.GetTrustDomains(), v.domain) +
		v.values(field+".notTrustDomains", s.GetNotTrustDomains(), v.domain) +
		v.values(field+".namespaces", s.GetNamespaces(), v.pattern) +
		v.values(field+".notNamespaces", s.GetNotNamespaces(), v.pattern) +
		v.values(field+".serviceAccounts", s.GetServiceAccounts(), v.account) +
		v.values(field+".notServiceAccounts", s.GetNotServiceAccounts(), v.account) +
		v.values(field+".ipBlocks", s.GetIpBlocks(), v.cidr) +
		v.values(field+".notIpBlocks", s.GetNotIpBlocks(), v.cidr) +
		v.values(field+".remoteIpBlocks", s.GetRemoteIpBlocks(), v.cidr) +
		v.values(field+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), v.cidr) +
		v.values(field+".requestPrincipals", s.GetRequestPrincipals(), nil) +
		v.values(field+".notRequestPrincipals", s.GetNotRequestPrincipals(), nil)
	if n == 0 {
		v.invalid(field, "must name something")
	}
}

func (v *validation) account(field, s string) {
	if strings.Contains(s, "*") || strings.Count(s, "/") > 1 {
		v.invalid(field, "%q is not namespace/account or account", s)
	}
}

func (v *validation) operation(field string, o *security.Operation) {
	n := v.values(field+".ports", o.GetPorts(), v.portText) +
		v.values(field+".notPorts", o.GetNotPorts(), v.portText) +
		v.values(field+".hosts", o.GetHosts(), v.pattern) +
		v.values(field+".notHosts", o.GetNotHosts(), v.pattern) +
		v.values(field+".methods", o.GetMethods(), v.pattern) +
		v.values(field+".notMethods", o.GetNotMethods(), v.pattern) +
		v.values(field+".paths", o.GetPaths(), v.template) +
		v.values(field+".notPaths", o.GetNotPaths(), v.template)
	if n == 0 {
		v.invalid(field, "must name something")
	}
}

func (v *validation) when(field string, w *security.Condition) {
	var check func(field, value string)
	switch w.GetKey() {
	case "":
		v.invalid(field+".key", "must not be empty")
	case "source.ip", "destination.ip", "remote.ip":
		check = v.cidr
	case "destination.port":
		check = v.portText
	case "source.namespace", "source.principal":
		check = v.pattern
	case "source.serviceAccount":
		check = v.account
	}
	if v.values(field+".values", w.GetValues(), check)+v.values(field+".notValues", w.GetNotValues(), check) == 0 {
		v.invalid(field, "must have values or notValues")
	}
}

func (v *validation) route(r *route) {
	for i, rule := range r.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		if r.grpc != nil {
			v.methods(field, r.grpc.Spec.Rules[i])
		}
		for j, m := range rule.Matches {
			at := fmt.Sprintf("%s.matches[%d]", field, j)
			if r.grpc == nil {
				v.path(at, m)
			}
			for k, h := range m.Headers {
				if h.Type != nil && *h.Type == "RegularExpression" {
					v.regex(fmt.Sprintf("%s.headers[%d].value", at, k), h.Value)
				}
			}
			for k, q := range m.QueryParams {
				if q.Type != nil && *q.Type == "RegularExpression" {
					v.regex(fmt.Sprintf("%s.queryParams[%d].value", at, k), q.Value)
				}
			}
		}
		v.backends(field, rule)
		v.filters(field, rule)
		if t := rule.Timeouts; t != nil {
			if _, err := parseDuration(t.Request); err != nil {
				v.invalid(field+".timeouts.request", "%v", err)
			}
			if _, err := parseDuration(t.BackendRequest); err != nil {
				v.invalid(field+".timeouts.backendRequest", "%v", err)
			}
		}
	}
}

func (v *validation) path(at string, m gatewayv1.HTTPRouteMatch) {
	if kind, value := pathOf(m); kind == "RegularExpression" {
		v.regex(at+".path.value", value)
	} else if !strings.HasPrefix(value, "/") {
		v.invalid(at+".path.value", "%q must begin with /", value)
	}
}

func (v *validation) backends(field string, rule gatewayv1.HTTPRouteRule) {
	for j, b := range rule.BackendRefs {
		at := fmt.Sprintf("%s.backendRefs[%d]", field, j)
		if b.Weight != nil && (*b.Weight < 0 || *b.Weight > 1_000_000) {
			v.invalid(at+".weight", "%d is not between 0 and 1000000", *b.Weight)
		}
		if b.Port != nil {
			v.port(at+".port", int64(*b.Port))
		}
	}
}

func (v *validation) regex(field, s string) {
	if _, err := regexp.Compile(s); err != nil {
		v.invalid(field, "%v", err)
	}
}
