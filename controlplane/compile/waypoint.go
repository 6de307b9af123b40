package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// waypoint is a Gateway that an object's labels chose and that may serve it.
type waypoint struct {
	object  *source.Gateway
	gateway *mesh.Gateway // how ztunnels find it; nil before it has an address
}

func (w *waypoint) name() Gateway { return Gateway{w.object.Namespace, w.object.Name} }

// identity is the waypoint's identity: its ServiceAccount is named like it unless
// it says otherwise.
func (w *waypoint) identity(m Mesh) mesh.Identity {
	return mesh.Identity{TrustDomain: m.TrustDomain, Namespace: w.object.Namespace,
		ServiceAccount: cmp.Or(w.object.Annotations[AnnotationServiceAccount], w.object.Name)}
}

// trafficType is what a waypoint is for.
type trafficType string

const (
	forService  trafficType = "service"
	forWorkload trafficType = "workload"
)

// IsWaypoint reports whether g is a waypoint of any class.
func IsWaypoint(g *source.Gateway) bool {
	return strings.HasSuffix(string(g.Spec.GatewayClassName), "waypoint")
}

// serves reports whether g serves that type of traffic.
func serves(g *source.Gateway, t trafficType) bool {
	switch g.Labels[LabelWaypointFor] {
	case "", string(forService):
		return t == forService
	case "all":
		return true
	case string(forWorkload):
		return t == forWorkload
	}
	return false
}

// waypointLabels returns which Gateway the labels of an object, or else those of
// its namespace, choose. where is the object that the choice was found on.
func (c *compilation) waypointLabels(o source.Object) (key source.Key, own, ok bool) {
	meta := o.Metadata()
	if key, ok := choice(meta.Labels, meta.Namespace); ok {
		return key, true, key.Name != "none"
	}
	ns, found := c.view.Get(source.Key{Kind: source.KindNamespace, Name: meta.Namespace}).(*source.Namespace)
	if !found {
		return source.Key{}, false, false
	}
	key, ok = choice(ns.Labels, meta.Namespace)
	return key, false, ok && key.Name != "none"
}

func choice(labels map[string]string, namespace string) (source.Key, bool) {
	name, ok := labels[LabelUseWaypoint]
	if !ok || name == "" {
		return source.Key{}, false
	}
	if ns := labels[LabelUseWaypointNamespace]; ns != "" {
		namespace = ns
	}
	return source.Key{Kind: source.KindGateway, Namespace: namespace, Name: name}, true
}

// podWaypoint returns the waypoint of a pod that is addressed directly.
func (c *compilation) podWaypoint(p *source.Pod) *waypoint {
	if p.Labels["gateway.networking.k8s.io/gateway-name"] != "" || p.HostNetwork {
		return nil // a waypoint has no waypoint
	}
	key, own, ok := c.waypointLabels(p)
	if !ok {
		return nil
	}
	if wp := c.resolve(key, p.Namespace, forWorkload, own); wp != nil && wp.gateway != nil {
		return wp
	}
	return nil
}

// serviceWaypoint returns the waypoint of a service, which may not have an
// address yet, and the Gateway that its labels choose, which may not be there.
func (c *compilation) serviceWaypoint(f frontend) (wp *waypoint, chosen source.Key) {
	if f.meta().Labels["gateway.networking.k8s.io/gateway-name"] != "" {
		return nil, source.Key{}
	}
	key, own, ok := c.waypointLabels(f.object)
	if !ok {
		return nil, source.Key{}
	}
	if e, isEntry := f.object.(*source.ServiceEntry); isEntry && namespaceOnly(e) && key.Namespace != e.Namespace {
		c.coded(WaypointBound, CodeCrossNamespace, reason.Unsupported, useWaypointField,
			fmt.Sprintf("only namespace %s sees the entry: its waypoint cannot be %s/%s", e.Namespace, key.Namespace, key.Name))
		return nil, key
	}
	if wp = c.resolve(key, f.meta().Namespace, forService, own); wp != nil {
		c.canary(f, key, own)
	}
	return wp, key
}

// resolve returns the waypoint, or nil and says why not. Of the many pods that a
// namespace's choice covers only those with a choice of their own say so.
func (c *compilation) resolve(key source.Key, namespace string, t trafficType, own bool) *waypoint {
	unbound := func(code string, r reason.Reason, message string) {
		if own || t == forService {
			c.coded(WaypointBound, code, r, useWaypointField, message)
		}
	}
	g, ok := c.view.Get(key).(*source.Gateway)
	if !ok {
		unbound("", reason.TargetNotFound, fmt.Sprintf("waypoint %s/%s does not exist", key.Namespace, key.Name))
		return nil
	}
	switch {
	case !IsWaypoint(g):
		unbound("", reason.TargetNotFound, fmt.Sprintf("gateway %s/%s is not a waypoint", key.Namespace, key.Name))
	case !serves(g, t):
		if own {
			c.coded(WaypointBound, CodeUnsupportedTrafficType, reason.Unsupported, useWaypointField, fmt.Sprintf("waypoint %s/%s is not for %s traffic", key.Namespace, key.Name, t))
		}
	case !c.admits(g, namespace):
		unbound(CodeAttachmentDenied, reason.Unsupported, fmt.Sprintf("waypoint %s/%s does not admit namespace %s", key.Namespace, key.Name, namespace))
	default:
		if gw := c.gatewayPointer(g); gw != nil {
			if t == forService {
				c.said(WaypointBound, fmt.Sprintf("attached to waypoint %s/%s", g.Namespace, g.Name))
			}
			return &waypoint{g, gw}
		}
		unbound("", reason.NoWaypoint, fmt.Sprintf("waypoint %s/%s has no address yet", key.Namespace, key.Name))
		return &waypoint{object: g}
	}
	return nil
}

const useWaypointField = `metadata.labels["istio.io/use-waypoint"]`

// admits reports whether the HBONE listener of g lets objects of namespace in.
func (c *compilation) admits(g *source.Gateway, namespace string) bool {
	for _, l := range g.Spec.Listeners {
		if l.Protocol != "HBONE" && l.Port != mesh.PortHBONE {
			continue
		}
		from := gatewayv1.NamespacesFromSame
		var allowed *gatewayv1.RouteNamespaces
		if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil {
			allowed = l.AllowedRoutes.Namespaces
			if allowed.From != nil {
				from = *allowed.From
			}
		}
		switch from {
		case gatewayv1.NamespacesFromAll:
			return true
		case gatewayv1.NamespacesFromSame:
			return g.Namespace == namespace
		case gatewayv1.NamespacesFromSelector:
			return c.namespaceMatches(namespace, allowed)
		}
	}
	return false
}

func (c *compilation) namespaceMatches(namespace string, r *gatewayv1.RouteNamespaces) bool {
	ns, ok := c.view.Get(source.Key{Kind: source.KindNamespace, Name: namespace}).(*source.Namespace)
	if !ok || r.Selector == nil {
		return false
	}
	if !selects(r.Selector.MatchLabels, ns.Labels) {
		return false
	}
	for _, e := range r.Selector.MatchExpressions {
		v, has := ns.Labels[e.Key]
		if !expression(string(e.Operator), e.Values, v, has) {
			return false
		}
	}
	return true
}

func expression(op string, values []string, v string, has bool) bool {
	in := false
	for _, want := range values {
		in = in || has && want == v
	}
	switch op {
	case "In":
		return in
	case "NotIn":
		return !in
	case "Exists":
		return has
	case "DoesNotExist":
		return !has
	}
	return false
}

// gatewayPointer returns how ztunnels find the waypoint: by hostname when its
// status has one, else by address.
func (c *compilation) gatewayPointer(g *source.Gateway) *mesh.Gateway {
	var ip *mesh.Gateway
	for _, a := range g.Addresses {
		switch a.Type {
		case "Hostname":
			return &mesh.Gateway{Service: mesh.ServiceName{Namespace: hostNamespace(a.Value, g.Namespace), Hostname: a.Value}, HBONEPort: mesh.PortHBONE}
		case "IPAddress":
			if addr, ok := source.ParseAddr(a.Value); ok && ip == nil {
				ip = &mesh.Gateway{Address: mesh.NetAddr{Network: c.mesh.Network, Addr: addr}, HBONEPort: mesh.PortHBONE}
			}
		}
	}
	return ip
}

// hostNamespace is the namespace in name.namespace.svc.domain.
func hostNamespace(hostname, otherwise string) string {
	if parts := strings.SplitN(hostname, ".", 4); len(parts) >= 3 && parts[2] == "svc" {
		return parts[1]
	}
	return otherwise
}

// gateway compiles a Gateway: what it does is part of the Services behind it.
func (c *compilation) gateway(g *source.Gateway) {
	if !IsWaypoint(g) {
		c.bad(Accepted, reason.Unsupported, "spec.gatewayClassName", fmt.Sprintf("class %q is not a waypoint's", g.Spec.GatewayClassName))
		return
	}
	hbone := false
	for i, l := range g.Spec.Listeners {
		if l.Protocol == "HBONE" && l.Port == mesh.PortHBONE {
			hbone = true
		} else {
			c.bad(Accepted, reason.Unsupported, fmt.Sprintf("spec.listeners[%d]", i), "expected a single listener on port 15008 with protocol HBONE")
		}
	}
	if !hbone {
		c.bad(Accepted, reason.MissingField, "spec.listeners", "expected a single listener on port 15008 with protocol HBONE")
	}
	switch g.Labels[LabelWaypointFor] {
	case "", "service", "workload", "all", "none":
	default:
		c.bad(Accepted, reason.InvalidValue, `metadata.labels["istio.io/waypoint-for"]`, "must be service, workload, all or none")
	}
	c.settled(Accepted)
	if g.Annotations[AnnotationWaypointOnly] == "true" {
		w := &waypoint{object: g}
		c.out.Policies = append(c.out.Policies, waypointOnlyPolicy(waypointOnlyName(g.Namespace, g.Name), w.identity(c.mesh)))
	}
}

// waypointOnlyPolicy denies every peer but the waypoints.
func waypointOnlyPolicy(name mesh.PolicyName, waypoints ...mesh.Identity) *mesh.Policy {
	var match mesh.Match
	for _, id := range waypoints {
		match.NotPrincipals = append(match.NotPrincipals, mesh.StringMatch{Kind: mesh.MatchExact, Value: id.Principal()})
	}
	return &mesh.Policy{
		Name: name, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{match}}}}},
	}
}

func waypointOnlyName(namespace, name string) mesh.PolicyName {
	return mesh.PolicyName{Namespace: namespace, Name: "culvert_waypoint_only_" + name}
}

// waypointOnly names the policy that keeps a pod reachable by its waypoints
// alone: the one it has itself, and those of its services. Several of them share
// a policy of the pod's own.
func (c *compilation) waypointOnly(p *source.Pod, services []*source.Service, own *waypoint) []mesh.PolicyName {
	var only []*source.Gateway
	add := func(g *source.Gateway) {
		if g.Annotations[AnnotationWaypointOnly] == "true" && !slices.Contains(only, g) {
			only = append(only, g)
		}
	}
	if own != nil {
		add(own.object)
	}
	for _, s := range services {
		if s.Labels["gateway.networking.k8s.io/gateway-name"] != "" {
			continue
		}
		key, _, ok := c.waypointLabels(s)
		if !ok {
			continue
		}
		if g, ok := c.view.Get(key).(*source.Gateway); ok && IsWaypoint(g) && serves(g, forService) && c.admits(g, s.Namespace) {
			add(g)
		}
	}
	switch len(only) {
	case 0:
		return nil
	case 1:
		return []mesh.PolicyName{waypointOnlyName(only[0].Namespace, only[0].Name)}
	}
	var ids []mesh.Identity
	for _, g := range only {
		ids = append(ids, (&waypoint{object: g}).identity(c.mesh))
	}
	name := waypointOnlyName(p.Namespace, "pod_"+p.Name)
	c.out.Policies = append(c.out.Policies, waypointOnlyPolicy(name, ids...))
	return []mesh.PolicyName{name}
}
