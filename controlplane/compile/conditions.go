package compile

import (
	"slices"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Condition types.
const (
	Accepted          = "Accepted"
	ResolvedRefs      = "ResolvedRefs"
	ZtunnelAccepted   = "ZtunnelAccepted"
	WaypointAccepted  = "WaypointAccepted"
	WaypointBound     = "WaypointBound"
	WaypointMissing   = "WaypointMissing" // Status false: the object does nothing without a waypoint, and has none
	VisibilityApplied = "VisibilityApplied"
)

// Codes of conditions whose Type and Reason leave open what Kubernetes' status
// should say. They are Istio's and the Gateway API's.
const (
	CodeAttachmentDenied       = "AttachmentDenied"                // WaypointBound: the waypoint does not admit the namespace
	CodeUnsupportedTrafficType = "UnsupportedTrafficType"          // WaypointBound: the waypoint is for something else
	CodeCrossNamespace         = "CrossNamespaceWaypointForbidden" // WaypointBound: what only its namespace sees has a waypoint elsewhere
	CodeCanaryInvalidWeight    = "CanaryInvalidWeight"             // WaypointBound: the second waypoint's share makes no sense
	CodeCanarySameAsPrimary    = "CanarySameAsPrimary"             // WaypointBound: the second waypoint is the first
	CodeRefNotPermitted        = "RefNotPermitted"                 // ResolvedRefs: no ReferenceGrant
	CodeInvalidKind            = "InvalidKind"                     // ResolvedRefs: not a kind that can be referred to
	CodeUnsupportedValue       = "UnsupportedValue"                // something in the object is not supported
	CodeForeign                = "Foreign"                         // Accepted: the parent is another controller's, whose status it is
)

// said is ok with a message.
func (c *compilation) said(kind, message string) {
	c.ok(kind)
	c.out.Conditions[len(c.out.Conditions)-1].Message = message
}

// retract takes back that the object is fine in one respect.
func (c *compilation) retract(kind string) {
	c.out.Conditions = slices.DeleteFunc(c.out.Conditions, func(cond Condition) bool { return cond.Type == kind && cond.Status })
}

// coded is bad with a code.
func (c *compilation) coded(kind, code string, r reason.Reason, field, message string) {
	c.bad(kind, r, field, message)
	c.out.Conditions[len(c.out.Conditions)-1].Code = code
}

// partly notes that the object is in effect but for one thing.
func (c *compilation) partly(kind string, r reason.Reason, field, message string) {
	c.bad(kind, r, field, message)
	c.out.Conditions[len(c.out.Conditions)-1].Partial = true
}

// Text says in one line what is wrong: "field: reason: message".
func (c Condition) Text() string {
	text := string(c.Reason)
	if c.Field != "" {
		text = c.Field + ": " + text
	}
	if c.Message != "" {
		text += ": " + c.Message
	}
	return text
}
