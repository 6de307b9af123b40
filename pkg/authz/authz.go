// Package authz decides whether layer 4 policies allow a connection.
//
//	missing? ── explicit DENY matches ──► denied by that policy
//	   │ no
//	   ├─ a named policy is missing ────► denied: not received
//	   ├─ no ALLOW policies ────────────► allowed
//	   ├─ an ALLOW policy matches ──────► allowed
//	   └─ else ─────────────────────────► denied: none allowed
//
// Everything here is a pure function of its arguments, safe for concurrent use,
// and allocates nothing when the connection is allowed.
package authz

import (
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
	Policy mesh.PolicyName   // that denied or allowed, or that is missing; zero if none in particular
	DryRun []mesh.PolicyName // dry-run policies that match
}

// Err returns nil when allowed, else an error in the words of access logs.
func (v Verdict) Err() error { return nil }

// Allowed evaluates the policies of one workload. missing are policies that the
// workload names and that are not known.
func Allowed(policies []*mesh.Policy, missing []mesh.PolicyName, c Connection) Verdict {
	return Verdict{}
}
