package compile

import (
	"fmt"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

func (v *validation) serviceEntry(e *source.ServiceEntry) {
	spec := e.Spec
	if len(spec.GetHosts()) == 0 {
		v.invalid("spec.hosts", "must name a host")
	}
	for i, h := range spec.GetHosts() {
		v.host(fmt.Sprintf("spec.hosts[%d]", i), h)
	}
	for i, a := range spec.GetAddresses() {
		v.cidr(fmt.Sprintf("spec.addresses[%d]", i), a)
	}
	if len(spec.GetPorts()) == 0 {
		v.invalid("spec.ports", "must have a port")
	}
	seen := map[uint32]bool{}
	names := map[string]bool{}
	for i, p := range spec.GetPorts() {
		field := fmt.Sprintf("spec.ports[%d]", i)
		v.port(field+".number", int64(p.GetNumber()))
		if p.GetTargetPort() != 0 {
			v.port(field+".targetPort", int64(p.GetTargetPort()))
		}
		if seen[p.GetNumber()] || names[p.GetName()] {
			v.invalid(field, "port %d or its name is given twice", p.GetNumber())
		}
		seen[p.GetNumber()], names[p.GetName()] = true, true
	}
	if len(spec.GetEndpoints()) > 0 && spec.GetWorkloadSelector() != nil {
		v.invalid("spec.workloadSelector", "an entry has endpoints or a workloadSelector, not both")
	}
	if spec.GetResolution() == networking.ServiceEntry_NONE && len(spec.GetEndpoints()) > 0 {
		v.invalid("spec.endpoints", "with resolution NONE clients go to the address that they dial: there are no endpoints")
	}
	v.enlarged(spec)
	for i, ep := range spec.GetEndpoints() {
		v.endpoint(fmt.Sprintf("spec.endpoints[%d]", i), ep)
		if _, ok := source.ParseAddr(ep.GetAddress()); !ok && spec.GetResolution() == networking.ServiceEntry_STATIC {
			v.invalid(fmt.Sprintf("spec.endpoints[%d].address", i), "%q must be an IP address with resolution STATIC", ep.GetAddress())
		}
	}
}

// What an entry may become: each endpoint, or pod that it selects, has every port of
// every host. The definition's own limits would let a small object be gigabytes in
// every replica and node proxy.
const (
	maxHostPorts     = 1 << 12 // hosts times ports
	maxEndpointPorts = 1 << 18 // that times endpoints
)

func (v *validation) enlarged(spec *networking.ServiceEntry) {
	hosts, ports, endpoints := len(spec.GetHosts()), len(spec.GetPorts()), len(spec.GetEndpoints())
	switch {
	case hosts*ports > maxHostPorts:
		v.invalid("spec.hosts", "%d hosts with %d ports each are more than %d: make several entries of it", hosts, ports, maxHostPorts)
	case hosts*ports*endpoints > maxEndpointPorts:
		v.invalid("spec.endpoints", "%d endpoints with %d ports of %d hosts each are more than %d: make several entries of it", endpoints, ports, hosts, maxEndpointPorts)
	}
}

// host checks a DNS name, whose first label may be a wildcard.
func (v *validation) host(field, h string) {
	name := strings.TrimPrefix(h, "*.")
	switch {
	case h == "":
		v.invalid(field, "must not be empty")
	case h == "*":
		v.invalid(field, "\"*\" alone would be every host")
	case strings.ContainsAny(name, "*/ _:") || strings.HasPrefix(name, ".") || strings.Contains(name, ".."):
		v.invalid(field, "%q is not a host name", h)
	}
}

func (v *validation) workloadEntry(e *source.WorkloadEntry) { v.endpoint("spec", e.Spec) }

func (v *validation) endpoint(field string, e *networking.WorkloadEntry) {
	if e.GetAddress() == "" {
		v.invalid(field+".address", "must not be empty")
	}
	for name, port := range e.GetPorts() {
		v.port(fmt.Sprintf("%s.ports[%q]", field, name), int64(port))
	}
}

// filters checks what the filters of a rule ask of one another and of its matches.
func (v *validation) filters(field string, rule gatewayv1.HTTPRouteRule) {
	f := ruleFilters(rule.Filters)
	if f.redirect != nil && f.rewrite != nil {
		v.invalid(field+".filters", "a rule redirects or rewrites, not both")
	}
	for i, filter := range rule.Filters {
		var path *gatewayv1.HTTPPathModifier
		at := fmt.Sprintf("%s.filters[%d]", field, i)
		switch {
		case filter.RequestRedirect != nil:
			path, at = filter.RequestRedirect.Path, at+".requestRedirect"
			v.redirect(at, filter.RequestRedirect)
		case filter.URLRewrite != nil:
			path, at = filter.URLRewrite.Path, at+".urlRewrite"
		case filter.RequestMirror != nil:
			if n, of := mirrorShare(filter.RequestMirror); n < 0 || of <= 0 || n > of {
				v.invalid(at+".requestMirror", "%d of %d is not a share", n, of)
			}
		}
		if path != nil && path.Type == gatewayv1.PrefixMatchHTTPPathModifier && !prefixesOnly(rule) {
			v.invalid(at+".path.type", "ReplacePrefixMatch needs matches of type PathPrefix")
		}
	}
	if r := rule.Retry; r != nil {
		if _, err := parseDuration(r.Backoff); err != nil {
			v.invalid(field+".retry.backoff", "%v", err)
		}
	}
}

func (v *validation) redirect(field string, f *gatewayv1.HTTPRequestRedirectFilter) {
	if f.Port != nil {
		v.port(field+".port", int64(*f.Port))
	}
	if f.Scheme != nil && *f.Scheme != "http" && *f.Scheme != "https" {
		v.invalid(field+".scheme", "must be http or https, is %q", *f.Scheme)
	}
	switch deref(f.StatusCode, 302) {
	case 301, 302, 303, 307, 308:
	default:
		v.invalid(field+".statusCode", "%d is not a redirection", *f.StatusCode)
	}
}

func prefixesOnly(rule gatewayv1.HTTPRouteRule) bool {
	for _, m := range rule.Matches {
		if kind, _ := pathOf(m); kind != gatewayv1.PathMatchPathPrefix {
			return false
		}
	}
	return true
}
