package status

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Controller is the name under which a route's status.parents has what we say.
const Controller = "culvert-mesh.github.io/mesh-controller"

// Types and reasons of a route's conditions. ResolvedWaypoints is Istio's: whether
// the parent has a waypoint, without which the route has no effect.
const (
	typeResolvedWaypoints  = "ResolvedWaypoints"
	reasonMissingWaypoint  = "MissingUseWaypointLabel"
	reasonNoMatchingParent = string(gatewayv1.RouteReasonNoMatchingParent)
)

// parentStatus is one entry of status.parents.
type parentStatus struct {
	ParentRef      gatewayv1.ParentReference `json:"parentRef"`
	ControllerName string                    `json:"controllerName"`
	Conditions     []json.RawMessage         `json:"conditions"`
}

// parentStatuses puts what is to be said of our parents among what others said of
// theirs.
func parentStatuses(seen *Seen, found []compile.Condition, now time.Time) (out []json.RawMessage, changed bool) {
	pending := ourParents(seen, found)
	out = make([]json.RawMessage, 0, len(seen.Status.Parents)+len(pending))
	for _, raw := range seen.Status.Parents {
		var old parentStatus
		if json.Unmarshal(raw, &old) != nil || old.ControllerName != Controller {
			out = append(out, raw)
			continue
		}
		i := slices.IndexFunc(pending, func(p int) bool { return reflect.DeepEqual(seen.Spec.ParentRefs[p], old.ParentRef) })
		if i < 0 {
			changed = true
			continue
		}
		conditions, differs := merge(old.Conditions, typesOf(old.Conditions), parentConditions(seen, pending[i], found), now)
		pending = slices.Delete(pending, i, i+1)
		if !differs {
			out = append(out, raw)
			continue
		}
		old.Conditions = conditions
		out, changed = append(out, must(json.Marshal(old))), true
	}
	for _, p := range pending {
		conditions, _ := merge(nil, nil, parentConditions(seen, p, found), now)
		out = append(out, must(json.Marshal(parentStatus{seen.Spec.ParentRefs[p], Controller, conditions})))
		changed = true
	}
	return out, changed
}

// typesOf returns the types of conditions: in an entry of ours all are ours.
func typesOf(conditions []json.RawMessage) []string {
	var out []string
	for _, raw := range conditions {
		var c condition
		if json.Unmarshal(raw, &c) == nil {
			out = append(out, c.Type)
		}
	}
	return out
}

// ourParents returns the indexes of the parents that a mesh speaks for: services.
// A Gateway is its own controller's, unless it is a waypoint, about which compile
// then has something to say.
func ourParents(seen *Seen, found []compile.Condition) []int {
	var out []int
	for i, ref := range seen.Spec.ParentRefs {
		kind, group := "Gateway", gatewayv1.GroupName
		if ref.Kind != nil {
			kind = string(*ref.Kind)
		}
		if ref.Group != nil {
			group = string(*ref.Group)
		}
		ours := kind == "Service" && group == "" || kind == "ServiceEntry" && group == "networking.istio.io"
		if kind == "Gateway" {
			ours = slices.ContainsFunc(found, func(c compile.Condition) bool {
				return c.Field == parentField(i) && c.Code != "" && c.Code != compile.CodeForeign
			})
		}
		if ours {
			out = append(out, i)
		}
	}
	return out
}

func parentField(i int) string { return fmt.Sprintf("spec.parentRefs[%d]", i) }

// parentConditions says how a route stands with one of its parents.
func parentConditions(seen *Seen, parent int, found []compile.Condition) []condition {
	here := filter(bad(compile.Accepted, found), func(c compile.Condition) bool {
		return c.Field == parentField(parent) || !strings.HasPrefix(c.Field, "spec.parentRefs[")
	})
	waypoint := filter(here, func(c compile.Condition) bool { return c.Reason == reason.NoWaypoint })
	parted, whole := parts(len(seen.Spec.Rules), filter(here, func(c compile.Condition) bool { return c.Reason != reason.NoWaypoint }))
	say := func(kind string, ok bool, why, message string) condition {
		return newCondition(kind, ok, why, message, found)
	}
	accepted := say(compile.Accepted, true, reasonAccepted, "the route is accepted")
	resolved := say(typeResolvedWaypoints, true, typeResolvedWaypoints, "the parent has a waypoint")
	if len(whole) > 0 {
		accepted = say(compile.Accepted, false, acceptedReason(whole[0]), texts(whole))
		if acceptedReason(whole[0]) == reasonNoMatchingParent {
			resolved = say(typeResolvedWaypoints, false, reasonNoMatchingParent, texts(whole[:1]))
		}
	}
	if len(waypoint) > 0 {
		resolved = say(typeResolvedWaypoints, false, cmp.Or(waypoint[0].Code, reasonMissingWaypoint), texts(waypoint))
	}
	out := []condition{accepted, references(found), resolved}
	if len(parted) > 0 && len(whole) == 0 {
		out = append(out, say(string(gatewayv1.RouteConditionPartiallyInvalid), true, reasonUnsupportedValue, "Dropped Rule: "+texts(parted)))
	}
	return out
}

// parts divides what is wrong into what concerns some of a route's rules, while
// the others are in effect, and what concerns the whole route. Rules of which none
// is in effect are the whole route.
func parts(rules int, found []compile.Condition) (some, whole []compile.Condition) {
	dropped := map[string]bool{}
	for _, c := range found {
		rule, _, in := strings.Cut(c.Field, "]")
		switch {
		case in && strings.HasPrefix(rule, "spec.rules[") && c.Reason != reason.InvalidValue:
			some = append(some, c)
			if !c.Partial {
				dropped[rule] = true
			}
		case c.Partial:
			some = append(some, c)
		default:
			whole = append(whole, c)
		}
	}
	if len(dropped) > 0 && len(dropped) >= rules {
		return nil, append(whole, some...)
	}
	return some, whole
}

func acceptedReason(c compile.Condition) string {
	switch {
	case c.Code != "":
		return c.Code
	case c.Reason == reason.TargetNotFound:
		return reasonNoMatchingParent
	}
	return reasonUnsupportedValue
}

// references says whether everything that a route refers to is there and may be
// referred to.
func references(found []compile.Condition) condition {
	problems := bad(compile.ResolvedRefs, found)
	if len(problems) == 0 {
		return newCondition(compile.ResolvedRefs, true, compile.ResolvedRefs, "all references are resolved", found)
	}
	return newCondition(compile.ResolvedRefs, false, cmp.Or(problems[0].Code, refsReason(problems[0].Reason)), texts(problems), found)
}

func refsReason(r reason.Reason) string {
	switch r {
	case reason.RefNotPermitted:
		return string(gatewayv1.RouteReasonRefNotPermitted)
	case reason.Unsupported:
		return string(gatewayv1.RouteReasonInvalidKind)
	case reason.MissingField, reason.InvalidValue:
		return reasonUnsupportedValue
	}
	return string(gatewayv1.RouteReasonBackendNotFound)
}
