package compile

import (
	"cmp"
	"slices"

	security "istio.io/api/security/v1beta1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

type mtlsMode = security.PeerAuthentication_MutualTLS_Mode

const (
	modeUnset  = security.PeerAuthentication_MutualTLS_UNSET
	modeStrict = security.PeerAuthentication_MutualTLS_STRICT
)

// anonymous matches peers that presented no certificate.
var anonymous = []mesh.StringMatch{{Kind: mesh.MatchPresence}}

// StaticStrict is the policy that STRICT workloads name. It is always sent.
func StaticStrict(m Mesh) *mesh.Policy {
	return &mesh.Policy{
		Name: staticStrictName(m), Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{NotPrincipals: anonymous}}}}}},
	}
}

func staticStrictName(m Mesh) mesh.PolicyName {
	return mesh.PolicyName{Namespace: m.RootNamespace, Name: "istio_converted_static_strict"}
}

func convertedName(p *source.PeerAuthentication) mesh.PolicyName {
	return mesh.PolicyName{Namespace: p.Namespace, Name: "converted_peer_authentication_" + p.Name}
}

func forAll(p *source.PeerAuthentication) bool {
	return len(p.Spec.GetSelector().GetMatchLabels()) == 0
}

// inherited is the mode that a namespace's workloads have without one of their
// own: the oldest of the namespace, else the oldest of the mesh.
func (c *compilation) inherited(namespace string) mtlsMode {
	for _, ns := range []string{namespace, c.mesh.RootNamespace} {
		list := c.peerAuthentications(ns, forAll)
		if len(list) > 0 {
			if mode := list[0].Spec.GetMtls().GetMode(); mode != modeUnset {
				return mode
			}
		}
	}
	return security.PeerAuthentication_MutualTLS_PERMISSIVE
}

// peerAuthentications returns those that match, oldest first.
func (c *compilation) peerAuthentications(namespace string, match func(*source.PeerAuthentication) bool) []*source.PeerAuthentication {
	list := c.view.List(source.KindPeerAuthentication, namespace, func(o source.Object) bool {
		p, ok := o.(*source.PeerAuthentication)
		return ok && match(p)
	})
	out := make([]*source.PeerAuthentication, len(list))
	for i, o := range list {
		out[i] = o.(*source.PeerAuthentication)
	}
	slices.SortStableFunc(out, func(a, b *source.PeerAuthentication) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// peerAuthentication compiles the port-level modes of a PeerAuthentication that
// selects workloads; whole-workload STRICT is the static policy.
func (c *compilation) peerAuthentication(p *source.PeerAuthentication) {
	if forAll(p) && len(p.Spec.GetPortLevelMtls()) > 0 {
		c.partly(Accepted, reason.InvalidValue, "spec.portLevelMtls", "needs a selector; ignored")
	}
	if p.Spec.GetMtls().GetMode() == security.PeerAuthentication_MutualTLS_DISABLE {
		c.partly(Accepted, reason.Unsupported, "spec.mtls.mode", "DISABLE is PERMISSIVE here: peers in the mesh still use mutual TLS")
	}
	if forAll(p) {
		if oldest := c.peerAuthentications(p.Namespace, forAll)[0]; oldest.Name != p.Name {
			c.bad(Accepted, reason.Conflict, "", oldest.Key().String()+" is older and in force")
		}
	} else if policy := c.portPolicy(p); policy != nil {
		c.out.Policies = append(c.out.Policies, policy)
	}
	c.settled(Accepted)
}

// portPolicy returns the policy that denies peers without identity on the strict
// ports, or nil when no port is strict.
func (c *compilation) portPolicy(p *source.PeerAuthentication) *mesh.Policy {
	if len(p.Spec.GetPortLevelMtls()) == 0 {
		return nil
	}
	mode := p.Spec.GetMtls().GetMode()
	if mode == modeUnset {
		mode = c.inherited(p.Namespace)
	}
	var strict, lax []uint16
	for port, m := range p.Spec.GetPortLevelMtls() {
		switch portMode := m.GetMode(); {
		case portMode == modeStrict:
			strict = append(strict, uint16(port))
		case portMode != modeUnset:
			lax = append(lax, uint16(port))
		}
	}
	slices.Sort(strict)
	slices.Sort(lax)
	var match mesh.Match
	switch {
	case mode == modeStrict:
		match = mesh.Match{NotPrincipals: anonymous, NotDestinationPorts: lax}
	case len(strict) > 0:
		match = mesh.Match{NotPrincipals: anonymous, DestinationPorts: strict}
	default:
		return nil
	}
	return &mesh.Policy{
		Name: convertedName(p), Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{match}}}}},
	}
}

// policiesOf returns the policies that a pod names: those that select it by
// label, then what its PeerAuthentication and its NetworkPolicies come to, then the
// waypoint's.
func (c *compilation) policiesOf(p *source.Pod, services []*source.Service, own *waypoint) []mesh.PolicyName {
	var out []mesh.PolicyName
	namespaces := []string{p.Namespace}
	if p.Namespace != c.mesh.RootNamespace {
		namespaces = append(namespaces, c.mesh.RootNamespace)
	}
	for _, ns := range namespaces {
		for _, key := range c.view.Names(source.KindAuthorizationPolicy, ns, func(o source.Object) bool { return c.mesh.selectsPod(o, p) }) {
			out = append(out, mesh.PolicyName{Namespace: ns, Name: key.Name})
		}
	}
	slices.SortFunc(out, func(a, b mesh.PolicyName) int { return cmp.Compare(a.String(), b.String()) })
	if name, ok := c.peerPolicy(p); ok {
		out = append(out, name)
	}
	if name, ok := c.isolation(p); ok {
		out = append(out, name)
	}
	return append(out, c.waypointOnly(p, services, own)...)
}

// selectsPod reports whether o is a policy for ztunnel that names the pod by
// label, and is sent.
func (m Mesh) selectsPod(o source.Object, p *source.Pod) bool {
	ap, ok := o.(*source.AuthorizationPolicy)
	return ok && len(targets(ap)) == 0 && m.scope(ap) == mesh.ScopeWorkloadSelector &&
		ap.Spec.GetAction() != security.AuthorizationPolicy_AUDIT &&
		selects(ap.Spec.GetSelector().GetMatchLabels(), p.Labels)
}

func (c *compilation) peerPolicy(p *source.Pod) (mesh.PolicyName, bool) {
	own := c.peerAuthentications(p.Namespace, func(pa *source.PeerAuthentication) bool {
		return !forAll(pa) && selects(pa.Spec.GetSelector().GetMatchLabels(), p.Labels)
	})
	mode := modeUnset
	if len(own) > 0 {
		if len(own[0].Spec.GetPortLevelMtls()) > 0 {
			policy := c.portPolicy(own[0])
			return convertedName(own[0]), policy != nil
		}
		mode = own[0].Spec.GetMtls().GetMode()
	}
	if mode == modeUnset {
		mode = c.inherited(p.Namespace)
	}
	return staticStrictName(c.mesh), mode == modeStrict
}
