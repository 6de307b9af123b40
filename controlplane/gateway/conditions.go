package gateway

import (
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// protocolHBONE is the protocol of a waypoint's listener.
const protocolHBONE = "HBONE"

// expected is what is said of every other listener.
const expected = `Expected a single listener on port 15008 with protocol HBONE`

// Status returns a Gateway's status when its plan has been carried out, with what
// went wrong in doing that. Times of transition are left to settle.
func (p Plan) Status(in Inputs, applied error) gatewayv1.GatewayStatus {
	s := gatewayv1.GatewayStatus{Addresses: p.addresses(in)}
	accepted := p.accepted(in, applied)
	programmed := p.programmed(in, accepted, applied, s.Addresses)
	s.Conditions = []metav1.Condition{accepted, programmed}
	for i, l := range in.Gateway.Spec.Listeners {
		s.Listeners = append(s.Listeners, listenerStatus(in, i, l, programmed.Status == metav1.ConditionTrue))
	}
	return s
}

func condition[T, R ~string](gw *gatewayv1.Gateway, kind T, ok bool, reason R, message string) metav1.Condition {
	c := metav1.Condition{Type: string(kind), Status: metav1.ConditionFalse, Reason: string(reason),
		Message: shorten(message), ObservedGeneration: gw.Generation}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// shorten keeps a message within what the API takes, 32768 characters.
func shorten(message string) string {
	if len(message) > 2000 {
		message = strings.ToValidUTF8(message[:2000], "") + " …"
	}
	return message
}

func (p Plan) accepted(in Inputs, applied error) metav1.Condition {
	const kind = gatewayv1.GatewayConditionAccepted
	switch bad := badListeners(in.Gateway); {
	case p.refused != nil:
		return condition(in.Gateway, kind, false, p.refused.reason, p.refused.message)
	case p.patched && isInvalid(applied):
		return condition(in.Gateway, kind, false, gatewayv1.GatewayReasonInvalidParameters, applied.Error())
	case len(bad) > 0:
		return condition(in.Gateway, kind, true, gatewayv1.GatewayReasonListenersNotValid, expected+"; not used: "+strings.Join(bad, ", "))
	case p.Unmanaged:
		return condition(in.Gateway, kind, true, gatewayv1.GatewayReasonAccepted, "run by somebody else: spec.addresses says where")
	}
	return condition(in.Gateway, kind, true, gatewayv1.GatewayReasonAccepted, "run as a waypoint")
}

// isInvalid reports whether the API server found an object wrong, which trying
// again does not help.
func isInvalid(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

// programmed is True when the waypoint can be used: it has an address, and pods.
func (p Plan) programmed(in Inputs, accepted metav1.Condition, applied error, addresses []gatewayv1.GatewayStatusAddress) metav1.Condition {
	no := func(reason gatewayv1.GatewayConditionReason, format string, args ...any) metav1.Condition {
		return condition(in.Gateway, gatewayv1.GatewayConditionProgrammed, false, reason, fmt.Sprintf(format, args...))
	}
	switch missing := p.unusable(in); {
	case accepted.Status != metav1.ConditionTrue:
		return no(gatewayv1.GatewayReasonInvalid, "not accepted: %s", accepted.Reason)
	case p.foreign != "":
		return no(gatewayv1.GatewayReasonInvalid, "%s exists and was not made for this Gateway", p.foreign)
	case applied != nil:
		return no(gatewayv1.GatewayReasonPending, "%v", applied)
	case missing != "" && p.Unmanaged:
		return no(gatewayv1.GatewayReasonAddressNotUsable, "no Service %s", missing)
	case missing != "":
		return no(gatewayv1.GatewayReasonAddressNotUsable, "the Service does not have address %s", missing)
	case len(addresses) == 0:
		return no(gatewayv1.GatewayReasonAddressNotAssigned, "Service %s has no address yet", p.deployed)
	}
	if !p.Unmanaged {
		if reason, message := p.runs(in); reason != "" {
			return no(reason, "%s", message)
		}
	}
	return condition(in.Gateway, gatewayv1.GatewayConditionProgrammed, true, gatewayv1.GatewayReasonProgrammed,
		fmt.Sprintf("reached at %s:%d", addresses[len(addresses)-1].Value, mesh.PortHBONE))
}

// unusable returns the first of spec.addresses that is not to be had.
func (p Plan) unusable(in Inputs) string {
	for _, a := range in.Gateway.Spec.Addresses {
		if p.Unmanaged {
			if !in.Hosts[a.Value] {
				return a.Value
			}
			continue
		}
		s := find(in.Live, kindService, p.deployed)
		if a.Value != "" && (s == nil || !slices.Contains(s.IPs, a.Value)) {
			return a.Value
		}
	}
	return ""
}

// runs returns why no pod serves, "" if one does.
func (p Plan) runs(in Inputs) (reason gatewayv1.GatewayConditionReason, message string) {
	switch d := find(in.Live, kindDeployment, p.deployed); {
	case d == nil:
		return gatewayv1.GatewayReasonPending, fmt.Sprintf("Deployment %s is being made", p.deployed)
	case d.Available > 0:
		return "", ""
	case d.Observed && d.Replicas == 0:
		return gatewayv1.GatewayReasonNoResources, fmt.Sprintf("Deployment %s is scaled to 0", p.deployed)
	case d.Trouble != "":
		return gatewayv1.GatewayReasonPending, fmt.Sprintf("Deployment %s: no pod is available: %s", p.deployed, d.Trouble)
	}
	return gatewayv1.GatewayReasonPending, fmt.Sprintf("Deployment %s: no pod is available", p.deployed)
}

// listened refuses a Gateway of which no listener can be used.
func listened(gw *gatewayv1.Gateway) *refusal {
	if len(badListeners(gw)) < len(gw.Spec.Listeners) {
		return nil
	}
	return &refusal{gatewayv1.GatewayReasonListenersNotValid, expected}
}

// badListeners are the names of those that cannot be used.
func badListeners(gw *gatewayv1.Gateway) (names []string) {
	for i := range gw.Spec.Listeners {
		if listenerError(gw, i) != "" {
			names = append(names, string(gw.Spec.Listeners[i].Name))
		}
	}
	return names
}

// listenerError returns the reason for which a listener cannot be used, or "".
func listenerError(gw *gatewayv1.Gateway, i int) gatewayv1.ListenerConditionReason {
	switch l := gw.Spec.Listeners[i]; {
	case l.Protocol != protocolHBONE:
		return gatewayv1.ListenerReasonUnsupportedProtocol
	case l.Port != mesh.PortHBONE:
		return gatewayv1.ListenerReasonPortUnavailable
	}
	for _, before := range gw.Spec.Listeners[:i] {
		if before.Protocol == protocolHBONE && before.Port == mesh.PortHBONE {
			return gatewayv1.ListenerReasonUnsupportedValue
		}
	}
	return ""
}

func listenerStatus(in Inputs, i int, l gatewayv1.Listener, programmed bool) gatewayv1.ListenerStatus {
	kinds, unknown := routeKindsOf(l)
	s := gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: kinds, AttachedRoutes: attached(in, l, kinds)}
	add := func(kind gatewayv1.ListenerConditionType, ok bool, reason gatewayv1.ListenerConditionReason, message string) {
		s.Conditions = append(s.Conditions, condition(in.Gateway, kind, ok, reason, message))
	}
	bad := listenerError(in.Gateway, i)
	if bad == "" {
		add(gatewayv1.ListenerConditionAccepted, true, gatewayv1.ListenerReasonAccepted, "")
	} else {
		add(gatewayv1.ListenerConditionAccepted, false, bad, expected)
	}
	add(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, "")
	switch {
	case bad != "":
		add(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonInvalid, expected)
	case programmed:
		add(gatewayv1.ListenerConditionProgrammed, true, gatewayv1.ListenerReasonProgrammed, "")
	default:
		add(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonPending, "the Gateway is not programmed")
	}
	if len(unknown) > 0 {
		add(gatewayv1.ListenerConditionResolvedRefs, false, gatewayv1.ListenerReasonInvalidRouteKinds,
			"not supported: "+strings.Join(unknown, ", "))
	} else {
		add(gatewayv1.ListenerConditionResolvedRefs, true, gatewayv1.ListenerReasonResolvedRefs, "")
	}
	return s
}

// ClassStatus returns the status of a GatewayClass of ours.
func ClassStatus(c *gatewayv1.GatewayClass) gatewayv1.GatewayClassStatus {
	bad := func(reason gatewayv1.GatewayClassConditionReason, message string) gatewayv1.GatewayClassStatus {
		return gatewayv1.GatewayClassStatus{Conditions: []metav1.Condition{{
			Type: string(gatewayv1.GatewayClassConditionStatusAccepted), Status: metav1.ConditionFalse,
			Reason: string(reason), Message: message, ObservedGeneration: c.Generation}}}
	}
	switch {
	case !isWaypointClass(c.Name):
		return bad(gatewayv1.GatewayClassReasonUnsupported, `the name of a class of waypoints ends in "waypoint"`)
	case c.Spec.ParametersRef != nil:
		return bad(gatewayv1.GatewayClassReasonInvalidParameters, fmt.Sprintf(
			"spec.parametersRef is not supported: label a ConfigMap of the mesh's namespace with %s: %s", LabelDefaultsForClass, c.Name))
	}
	return gatewayv1.GatewayClassStatus{
		Conditions: []metav1.Condition{{
			Type: string(gatewayv1.GatewayClassConditionStatusAccepted), Status: metav1.ConditionTrue,
			Reason: string(gatewayv1.GatewayClassReasonAccepted), Message: "run as waypoints", ObservedGeneration: c.Generation}},
		SupportedFeatures: sortedFeatures(features()),
	}
}

// settle gives conditions their times: since when they are as they are.
func settle(now time.Time, was, is []metav1.Condition) {
	for i := range is {
		is[i].LastTransitionTime = metav1.NewTime(now)
		for _, w := range was {
			if w.Type == is[i].Type && w.Status == is[i].Status {
				is[i].LastTransitionTime = w.LastTransitionTime
			}
		}
	}
}

// settleGateway is settle for a whole status.
func settleGateway(now time.Time, was, is *gatewayv1.GatewayStatus) {
	settle(now, was.Conditions, is.Conditions)
	for i := range is.Listeners {
		var before []metav1.Condition
		for _, l := range was.Listeners {
			if l.Name == is.Listeners[i].Name {
				before = l.Conditions
			}
		}
		settle(now, before, is.Listeners[i].Conditions)
	}
}
