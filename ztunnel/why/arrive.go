package why

import (
	"context"
	"fmt"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// arrive is about a connection that comes to a pod.
func (n *Node) arrive(ctx context.Context, p Pod, in Arriving) Answer {
	a := n.begin()
	self := a.self(p, false)
	switch {
	case !a.Captured && in.Authority != "":
		a.refuse(reason.Newf(reason.ConnectRefused, "connect", in.Dst.String(), "no ztunnel listens in the pod"))
		a.change("pod %s has to be served by the ztunnel of its node: look at culvert status", p)
		return a.Answer
	case !a.Captured:
		a.Allowed, a.Program = true, in.Dst
		a.step("delivery", in.Dst.String(), "straight to the program: nothing of the mesh is in the way")
		return a.Answer
	case self == nil:
		a.refuse(reason.Newf(reason.UnknownSource, "serve", "", "%s.%s (%s)", p.ServiceAccount, p.Namespace, p.Name))
		a.change("the control plane has to know the pod: look at culvert status")
		return a.Answer
	}
	if in.Authority != "" && a.unproved(self.Identity()) {
		return a.Answer
	}
	c := authz.Connection{Source: in.Source, Destination: in.Dst, Network: n.Network}
	if in.Authority != "" {
		trace := new(route.Trace)
		to, err := a.proxy.Deliver(ctx, route.Arrival{Local: self, Accepted: in.Dst.Addr(), Authority: in.Authority, Network: n.Network, Loopback: n.Loopback, Trace: trace})
		a.traced(trace.Steps)
		if err != nil {
			a.refuse(err)
			a.change("the tunnel is refused before any policy is asked: %s", reason.Of(err))
			return a.Answer
		}
		c.Destination, a.Program = to.Policy, to.Dial
	} else {
		a.Program = in.Dst
		a.step("delivery", in.Dst.String(), "plain TCP, which proves no identity")
	}
	if id, err := mesh.ParseIdentity(in.Identity); err == nil {
		c.Identity = id
	}
	a.authorize(self, c)
	return a.Answer
}

// authorize asks the pod's policies, as for a connection.
func (a *answer) authorize(self *mesh.Workload, c authz.Connection) {
	e := a.proxy.Explain(self, c)
	who := c.Identity.String()
	if who == "" {
		who = "a caller without an identity"
	}
	s := a.step("policies", fmt.Sprintf("for %s from %s to port %d", who, c.Source, c.Destination.Port()), "%s", considered(e))
	for _, p := range e.Policies {
		s.Detail = append(s.Detail, policyText(p)...)
	}
	for _, name := range e.Missing {
		s.Detail = append(s.Detail, name.String()+": named by the workload, but the control plane has not sent it")
	}
	a.Allowed = e.Allow
	if e.Policy != (mesh.PolicyName{}) {
		a.Policy = e.Policy.String()
	}
	if err := e.Err(); err != nil {
		a.refuse(err)
		a.step("decision", "", "denied: %s", err)
	} else {
		a.step("decision", "", "%s", allowedText(e))
	}
	a.advise(e, c)
}

func considered(e authz.Explanation) string {
	if len(e.Policies)+len(e.Missing) == 0 {
		return "none applies to the pod"
	}
	return fmt.Sprintf("%d apply to the pod", len(e.Policies)+len(e.Missing))
}

func policyText(p authz.Considered) (lines []string) {
	kind := p.Policy.Action.String()
	if p.Policy.DryRun {
		kind += ", dry run"
	}
	outcome := "does not match"
	switch {
	case p.Decides:
		outcome = "matches, and decides"
	case p.Matches:
		outcome = "matches"
	}
	lines = append(lines, fmt.Sprintf("%s (%s) %s", p.Policy.Name, kind, outcome))
	for _, r := range p.Rules {
		lines = append(lines, "  "+r)
	}
	return lines
}

func allowedText(e authz.Explanation) string {
	if e.Policy == (mesh.PolicyName{}) {
		return "allowed: no ALLOW policy restricts the pod, and no DENY policy matches"
	}
	return "allowed by " + e.Policy.String()
}

// advise says what would change the verdict.
func (a *answer) advise(e authz.Explanation, c authz.Connection) {
	who := "the caller"
	if !c.Identity.IsZero() {
		who = c.Identity.Principal()
	}
	switch e.Reason {
	case reason.None:
		if e.Policy == (mesh.PolicyName{}) {
			a.change("a DENY policy that matches, or any ALLOW policy for the pod that does not list %s", who)
		} else {
			a.change("taking %s out of %s, if no other ALLOW policy lists it", who, e.Policy)
		}
	case reason.DeniedByPolicy:
		if requiresIdentity(e.Policy) && c.Identity.IsZero() {
			a.change("the pod takes mutual TLS only (PeerAuthentication STRICT): the caller has to be in the mesh")
			return
		}
		if names := e.Policy.NetworkPolicies(); names != "" {
			a.change("an ingress rule of NetworkPolicy %s in %s would have to allow %s, %s, on port %d", names, e.Policy.Namespace, c.Source, who, c.Destination.Port())
			return
		}
		a.change("policy %s would have to go, or to leave %s out", e.Policy, who)
	case reason.DeniedPolicyAbsent:
		a.change("the control plane has to send policy %s, which the workload names", e.Policy)
	case reason.DeniedByDefault:
		for _, p := range e.Policies {
			if p.Policy.Action == mesh.Allow && !p.Policy.DryRun {
				a.change("ALLOW policy %s does not match: %s", p.Policy.Name, strings.Join(p.Rules, "; "))
			}
		}
		if c.Identity.IsZero() {
			a.change("the caller proves no identity; in the mesh it would")
		} else {
			a.change("an ALLOW policy for the pod that lists principal %s and port %d", who, c.Destination.Port())
		}
	}
}

// requiresIdentity reports whether a policy is what a control plane makes of a
// PeerAuthentication that is STRICT.
func requiresIdentity(name mesh.PolicyName) bool {
	return strings.HasPrefix(name.Name, "istio_converted_static_strict") || strings.HasPrefix(name.Name, "converted_peer_authentication_")
}

// InTunnel is the question that the destination's ztunnel is to be asked about a way.
func (w Way) InTunnel() Arriving {
	in := Arriving{Source: w.Source, Identity: w.Identity, Dst: w.Next, Authority: w.Authority}
	if w.Authority == "" {
		in.Identity = ""
	}
	return in
}
