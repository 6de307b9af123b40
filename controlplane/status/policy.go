package status

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Reasons of a policy's conditions, and of a service's.
const (
	reasonAccepted         = "Accepted"
	reasonInvalid          = "Invalid"
	reasonPartiallyInvalid = "PartiallyInvalid"
	reasonUnsupportedValue = "UnsupportedValue"
	reasonConflicted       = "Conflicted"
	reasonAncestorNotBound = "AncestorNotBound"
	reasonTargetNotFound   = "TargetNotFound"
	reasonWaypointAccepted = "WaypointAccepted"
	reasonWaypointNotReady = "WaypointIsNotReady"
)

// atZtunnel says whether a policy is in force at ztunnels. One of which a part
// cannot be enforced is, and says which.
func atZtunnel(kind string, found []compile.Condition) []condition {
	if len(found) == 0 {
		return nil
	}
	problems := bad(kind, found)
	whole := filter(problems, func(c compile.Condition) bool { return !c.Partial })
	switch {
	case len(whole) > 0:
		why := reasonUnsupportedValue
		switch whole[0].Reason {
		case reason.InvalidValue, reason.MissingField:
			why = reasonInvalid
		case reason.Conflict:
			why = reasonConflicted
		}
		return []condition{newCondition(typeZtunnelAccepted, false, cmp.Or(whole[0].Code, why), texts(problems), found)}
	case len(problems) > 0:
		return []condition{newCondition(typeZtunnelAccepted, true, reasonUnsupportedValue, texts(problems), found)}
	}
	return []condition{newCondition(typeZtunnelAccepted, true, reasonAccepted, "attached to ztunnel", found)}
}

// atWaypoints says whether waypoints enforce a policy: one condition for all that
// it targets, as Istio has it.
//
//	every target bound, nothing left out          True   Accepted
//	some target bound, or a rule not as written   True   PartiallyInvalid
//	the only target not bound                     False  TargetNotFound, AncestorNotBound, Invalid
//	no target bound, or not a policy that can be  False  Invalid
func atWaypoints(seen *Seen, targets []target, found []compile.Condition) condition {
	problems := bad(compile.WaypointAccepted, found)
	var unbound []compile.Condition
	bound := make([]string, 0, len(targets))
	for i, t := range targets {
		wrong := filter(problems, func(c compile.Condition) bool { return c.Field == targetField(seen, i) })
		unbound = append(unbound, wrong...)
		if len(wrong) == 0 {
			bound = append(bound, fmt.Sprintf("%s %s/%s", t.Kind, seen.Namespace, t.Name))
		}
	}
	whole := filter(problems, func(c compile.Condition) bool { return !c.Partial && !strings.HasPrefix(c.Field, "spec.targetRef") })
	say := func(ok bool, why, message string) condition {
		return newCondition(typeWaypointAccepted, ok, why, message, found)
	}
	switch {
	case len(whole) > 0:
		return say(false, reasonInvalid, texts(problems))
	case len(bound) == 0 && len(targets) == 1:
		return say(false, targetReason(unbound[0]), texts(problems))
	case len(bound) == 0:
		return say(false, reasonInvalid, texts(problems))
	case len(problems) > 0:
		return say(true, reasonPartiallyInvalid, texts(problems))
	}
	return say(true, reasonAccepted, "attached to "+strings.Join(bound, ", "))
}

func targetField(seen *Seen, i int) string {
	if len(seen.Spec.TargetRefs) == 0 {
		return "spec.targetRef"
	}
	return fmt.Sprintf("spec.targetRefs[%d]", i)
}

func targetReason(c compile.Condition) string {
	switch c.Reason {
	case reason.TargetNotFound:
		return reasonTargetNotFound
	case reason.NoWaypoint:
		return reasonAncestorNotBound
	}
	return reasonInvalid
}

// binding says whether a service's traffic goes through the waypoint that its
// labels choose. Without a choice there is nothing to say.
func binding(found []compile.Condition) []condition {
	var out []condition
	add := func(kind, istio, good, otherwise string) {
		all := filter(found, func(c compile.Condition) bool { return c.Type == kind })
		if len(all) == 0 {
			return
		}
		if problems := bad(kind, all); len(problems) > 0 {
			out = append(out, newCondition(istio, false, cmp.Or(problems[0].Code, otherwise), texts(problems), all))
			return
		}
		out = append(out, newCondition(istio, true, cmp.Or(all[0].Code, good), all[0].Message, all))
	}
	add(compile.WaypointBound, typeWaypointBound, reasonWaypointAccepted, reasonWaypointNotReady)
	add(compile.VisibilityApplied, typeVisibilityApplied, "Public", reasonInvalid)
	for _, c := range bad(compile.WaypointMissing, found) { // here it is the trouble that is True
		out = append(out, newCondition(typeWaypointMissing, true, cmp.Or(c.Code, "NoWaypointForWildcardService"), c.Text(), found))
		break
	}
	return out
}
