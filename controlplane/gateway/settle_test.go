package gateway

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func objectMeta(name string, generation int64) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Generation: generation}
}

// TestSettle: a condition keeps its time for as long as its status stays.
func TestSettle(t *testing.T) {
	t.Parallel()
	before, now := time.Unix(1000, 0), time.Unix(2000, 0)
	at := func(kind string, status metav1.ConditionStatus, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, LastTransitionTime: metav1.NewTime(before)}
	}
	was := gatewayv1.GatewayStatus{
		Conditions: []metav1.Condition{at("Accepted", "True", "Accepted"), at("Programmed", "False", "Pending"), at("Somebody", "True", "Else")},
		Listeners:  []gatewayv1.ListenerStatus{{Name: "mesh", Conditions: []metav1.Condition{at("Accepted", "True", "Accepted")}}},
	}
	is := gatewayv1.GatewayStatus{
		Conditions: []metav1.Condition{at("Accepted", "True", "ListenersNotValid"), at("Programmed", "True", "Programmed")},
		Listeners: []gatewayv1.ListenerStatus{
			{Name: "mesh", Conditions: []metav1.Condition{at("Accepted", "True", "Accepted")}},
			{Name: "new", Conditions: []metav1.Condition{at("Accepted", "True", "Accepted")}}},
	}
	settleGateway(now, &was, &is)
	for i, want := range []time.Time{before, now} {
		if got := is.Conditions[i].LastTransitionTime.Time; !got.Equal(want) {
			t.Errorf("%s: %v, want %v", is.Conditions[i].Type, got, want)
		}
	}
	if got := is.Listeners[0].Conditions[0].LastTransitionTime.Time; !got.Equal(before) {
		t.Errorf("listener mesh: %v", got)
	}
	if got := is.Listeners[1].Conditions[0].LastTransitionTime.Time; !got.Equal(now) {
		t.Errorf("listener new: %v", got)
	}
}
