// Package reason is the closed list of reasons for which a connection, a request
// or an object is refused. Access logs, metrics, status conditions and the
// command line all use these words, so a person can carry one from a log line to
// a dashboard to the documentation.
//
//	err := reason.New(reason.NoHealthyUpstream, "choose endpoint", "10.96.0.7:80", nil)
//	err.Error()         choose endpoint 10.96.0.7:80: no healthy upstream
//	reason.Of(err)      reason.NoHealthyUpstream
//	reason.Of(err).Flag()  "-"   (response_flags of istio_tcp_connections_failed_total)
//
// Values are immutable; everything is safe for concurrent use.
package reason

import (
	"errors"
	"fmt"
)

// Reason is one entry of the list. Its text is what people and logs see.
type Reason string

// Reasons of the L4 path.
const (
	None               Reason = ""
	DeniedByPolicy     Reason = "explicitly denied by policy"
	DeniedByDefault    Reason = "allow policies exist, but none allowed"
	DeniedPolicyAbsent Reason = "a policy that selects the workload has not been received"
	PolicyChanged      Reason = "connection closed due to policy change"
	UnknownSource      Reason = "failed to fetch information about local workload"
	UnknownDestination Reason = "unknown destination"
	NoHealthyUpstream  Reason = "no healthy upstream"
	NoWaypoint         Reason = "waypoint has no usable address"
	NoGateway          Reason = "network gateway unknown"
	SelfCall           Reason = "port belongs to the mesh itself"
	ConnectFailed      Reason = "connect failed"
	ConnectRefused     Reason = "connection refused"
	ConnectTimeout     Reason = "connection timed out"
	HBONETimeout       Reason = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"
	TLSFailure         Reason = "TLS handshake failed"
	IdentityMismatch   Reason = "peer identity not accepted"
	TrustDomain        Reason = "peer trust domain not accepted"
	CertRevoked        Reason = "peer certificate revoked"
	NoCertificate      Reason = "no certificate for identity"
	TunnelHandshake    Reason = "HTTP/2 handshake failed"
	TunnelStatus       Reason = "http status"
	TunnelReset        Reason = "stream reset"
	TunnelClosed       Reason = "tunnel closed"
	BadRequest         Reason = "malformed CONNECT request"
	AddressMismatch    Reason = "authority is not an address of this workload"
	Draining           Reason = "draining"
	Unresponsive       Reason = "the peer's proxy does not answer"
	Overloaded         Reason = "resource limit reached"
	Internal           Reason = "internal error"
)

// Reasons of the L7 path.
const (
	RBACDenied        Reason = "RBAC: access denied"
	NoRoute           Reason = "no route matched"
	UnservedAddress   Reason = "address is not served by this waypoint"
	RequestTimeout    Reason = "request timeout"
	MalformedHTTP     Reason = "malformed HTTP message"
	HeadersTooLarge   Reason = "header section too large"
	UpstreamReset     Reason = "upstream closed before a response"
	DownstreamClosed  Reason = "client closed the connection"
	BackendUnresolved Reason = "backend of the route cannot be resolved"
)

// Reasons of configuration objects.
const (
	UnknownField     Reason = "unknown field"
	InvalidValue     Reason = "invalid value"
	MissingField     Reason = "required field missing"
	Unsupported      Reason = "not supported"
	TargetNotFound   Reason = "target not found"
	RefNotPermitted  Reason = "reference not permitted"
	Conflict         Reason = "conflicts with an older object"
	MalformedYAML    Reason = "malformed YAML"
	DuplicateObject  Reason = "object defined twice"
	ResourceRejected Reason = "resource rejected"
)

// Flag returns the response_flags label of upstream's ztunnel for r: "-", DENY,
// CONNECT, TLS_FAILURE, H2_HANDSHAKE_FAILURE, NETWORK_POLICY, IDENTITY_ERROR or
// CERT_REVOKED.
func (r Reason) Flag() string {
	switch r {
	case DeniedByPolicy, DeniedByDefault, DeniedPolicyAbsent, PolicyChanged:
		return "DENY"
	case ConnectFailed, ConnectRefused, ConnectTimeout:
		return "CONNECT"
	case HBONETimeout:
		return "NETWORK_POLICY"
	case TLSFailure:
		return "TLS_FAILURE"
	case IdentityMismatch, TrustDomain, NoCertificate:
		return "IDENTITY_ERROR"
	case CertRevoked:
		return "CERT_REVOKED"
	case TunnelHandshake:
		return "H2_HANDSHAKE_FAILURE"
	}
	return "-"
}

// Error is a failure that a person will read: what was being done, to what, why.
type Error struct {
	Reason  Reason
	Op      string // "dial", "choose endpoint"
	Subject string // an address, a name; may be empty
	Err     error  // the cause; may be nil
}

// New returns an *Error. cause may be nil.
func New(r Reason, op, subject string, cause error) *Error {
	return &Error{Reason: r, Op: op, Subject: subject, Err: cause}
}

// Newf is New with a cause made from format and args.
func Newf(r Reason, op, subject, format string, args ...any) *Error {
	return New(r, op, subject, fmt.Errorf(format, args...))
}

// Error returns "op subject: reason: cause", leaving out what is empty.
func (e *Error) Error() string {
	s := e.Op
	if e.Subject != "" {
		s += " " + e.Subject
	}
	if e.Reason != None {
		s += ": " + string(e.Reason)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Of returns the reason of the outermost *Error in err's chain, None for a nil
// err and Internal for an error that carries no reason.
func Of(err error) Reason {
	if err == nil {
		return None
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return Internal
}
