// Package authz decides whether layer 4 policies allow a connection.
//
//	an enforced DENY matches ──────► denied by that policy
//	else a named policy is missing ► denied: not received
//	else no enforced ALLOW ────────► allowed
//	else an enforced ALLOW matches ► allowed
//	else ──────────────────────────► denied: none allowed
//
// A policy matches when any rule does, a rule when all clauses do, a clause when
// any match does. Dry-run policies are evaluated and reported, never enforced.
//
// Everything here is a pure function of its arguments, safe for concurrent use,
// and allocates nothing when the connection is allowed and no dry-run policy
// matches.
package authz

import (
	"errors"
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Connection is what policies are matched against.
type Connection struct {
	Source      netip.Addr
	Identity    mesh.Identity  // zero: the peer presented no certificate
	Destination netip.AddrPort // the application's real address and port
	Network     mesh.Network
}

// Verdict is the outcome.
type Verdict struct {
	Allow  bool
	Reason reason.Reason     // None when allowed
	Policy mesh.PolicyName   // that denied or allowed, or the first that is missing; zero if none in particular
	DryRun []mesh.PolicyName // dry-run policies that match
}

// Err returns nil when allowed, else an error in the words that access logs have
// always used.
func (v Verdict) Err() error {
	if v.Allow {
		return nil
	}
	var cause error
	switch v.Reason {
	case reason.DeniedByPolicy:
		cause = errors.New("explicitly denied by: " + v.Policy.String())
	case reason.DeniedPolicyAbsent:
		cause = errors.New("policy not received: " + v.Policy.String())
	default:
		cause = errors.New(string(v.Reason))
	}
	return &denial{policy: v.Policy, cause: cause, err: reason.New(v.Reason, "authorize", "", cause)}
}

// denial carries a reason and speaks the log's words.
type denial struct {
	policy mesh.PolicyName
	cause  error
	err    *reason.Error
}

// Policy returns the policy that denied, or that is missing; zero if it was none
// in particular. errors.As finds it through interface{ Policy() mesh.PolicyName }.
func (d *denial) Policy() mesh.PolicyName { return d.policy }

func (d *denial) Error() string {
	return "connection closed due to policy rejection: " + d.cause.Error()
}

func (d *denial) Unwrap() error { return d.err }

// Allowed evaluates the policies of one workload. missing are policies that the
// workload names and that are not known; a caller that is willing to wait for
// them does so before it asks.
func Allowed(policies []*mesh.Policy, missing []mesh.PolicyName, c Connection) Verdict {
	var s subject
	s.init(c)
	dryRun := dryRunMatches(policies, &s)
	for _, p := range policies {
		if p.Action == mesh.Deny && !p.DryRun && matchPolicy(p, &s) {
			return Verdict{Reason: reason.DeniedByPolicy, Policy: p.Name, DryRun: dryRun}
		}
	}
	if len(missing) > 0 {
		return Verdict{Reason: reason.DeniedPolicyAbsent, Policy: missing[0], DryRun: dryRun}
	}
	restricted := false
	for _, p := range policies {
		if p.Action != mesh.Allow || p.DryRun {
			continue
		}
		restricted = true
		if matchPolicy(p, &s) {
			return Verdict{Allow: true, Policy: p.Name, DryRun: dryRun}
		}
	}
	if restricted {
		return Verdict{Reason: reason.DeniedByDefault, DryRun: dryRun}
	}
	return Verdict{Allow: true, DryRun: dryRun}
}

func dryRunMatches(policies []*mesh.Policy, s *subject) (names []mesh.PolicyName) {
	for _, p := range policies {
		if p.DryRun && matchPolicy(p, s) {
			names = append(names, p.Name)
		}
	}
	return names
}
