package status

import (
	"encoding/json"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Types of conditions in the status of objects that have no entry per parent.
const (
	typeWaypointBound     = "istio.io/WaypointBound"
	typeWaypointMissing   = "istio.io/WaypointMissing"
	typeVisibilityApplied = "istio.io/VisibilityApplied"
	typeZtunnelAccepted   = "ZtunnelAccepted"
	typeWaypointAccepted  = "WaypointAccepted"
)

// Seen is an object as the API server has it: what conditions refer to, and the
// status that everybody has written so far.
type Seen struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              seenSpec   `json:"spec"`
	Status            seenStatus `json:"status"`
}

type seenSpec struct {
	ParentRefs []gatewayv1.ParentReference `json:"parentRefs,omitempty"` // of a route
	Rules      []struct{}                  `json:"rules,omitempty"`      // how many there are
	TargetRefs []target                    `json:"targetRefs,omitempty"` // of a policy
	TargetRef  *target                     `json:"targetRef,omitempty"`
}

// target is what a policy names.
type target struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

type seenStatus struct {
	Conditions []json.RawMessage `json:"conditions,omitempty"`
	Parents    []json.RawMessage `json:"parents,omitempty"`
	Addresses  []hostAddress     `json:"addresses,omitempty"` // of a ServiceEntry
}

// hostAddress is an address that was allocated to a host.
type hostAddress struct {
	Host  string `json:"host,omitempty"`
	Value string `json:"value,omitempty"`
}

// Found is what there is to say about an object.
type Found struct {
	Conditions []compile.Condition
	Addresses  []source.HostAddress // that a ServiceEntry's hosts have; none: whatever there is stays
}

// desired is the status that an object should have; a nil list stays as it is.
type desired struct {
	Conditions *[]json.RawMessage `json:"conditions,omitempty"`
	Parents    *[]json.RawMessage `json:"parents,omitempty"`
	Addresses  []hostAddress      `json:"addresses,omitempty"`
}

// Desired returns the merge patch of the status subresource that makes the status
// of seen say what was found about the object, or nil when it says so already, or
// when what was found is about another generation of the object than the one seen.
// The patch applies to the version seen only. What other controllers wrote stays.
func Desired(kind source.Kind, seen *Seen, f Found, now time.Time) []byte {
	found, current := ofGeneration(f.Conditions, seen.Generation)
	if !current {
		return nil
	}
	var status desired
	changed := false
	if addresses := allocated(f); len(addresses) > 0 && kind == source.KindServiceEntry && !slices.Equal(addresses, seen.Status.Addresses) {
		status.Addresses = addresses
	}
	if kind == source.KindHTTPRoute || kind == source.KindGRPCRoute {
		var parents []json.RawMessage
		if parents, changed = parentStatuses(seen, found, now); changed {
			status.Parents = &parents
		}
	} else {
		var conditions []json.RawMessage
		if conditions, changed = merge(seen.Status.Conditions, owned[kind], wanted(kind, seen, found), now); changed {
			status.Conditions = &conditions
		}
	}
	if !changed && status.Addresses == nil {
		return nil
	}
	return must(json.Marshal(map[string]any{"metadata": map[string]string{"resourceVersion": seen.ResourceVersion}, "status": status}))
}

// owned are the types of conditions that are ours, by kind: those that are not
// wanted are removed.
var owned = map[source.Kind][]string{
	source.KindService:             {typeWaypointBound, typeWaypointMissing, typeVisibilityApplied},
	source.KindServiceEntry:        {typeWaypointBound, typeWaypointMissing, typeVisibilityApplied},
	source.KindWorkloadEntry:       {typeWaypointBound},
	source.KindAuthorizationPolicy: {typeZtunnelAccepted, typeWaypointAccepted},
	source.KindPeerAuthentication:  {typeZtunnelAccepted},
}

func allocated(f Found) []hostAddress {
	var out []hostAddress
	for _, a := range f.Addresses {
		out = append(out, hostAddress{a.Host, a.Value})
	}
	return out
}

// wanted returns the conditions that an object should have.
func wanted(kind source.Kind, seen *Seen, found []compile.Condition) []condition {
	switch kind {
	case source.KindAuthorizationPolicy:
		if targets := seen.targets(); len(targets) > 0 {
			return []condition{atWaypoints(seen, targets, found)}
		}
		return atZtunnel(compile.ZtunnelAccepted, found)
	case source.KindPeerAuthentication:
		return atZtunnel(compile.Accepted, found)
	}
	return binding(found)
}

// ofGeneration leaves what was found about that generation. current is false when
// something was found, but only about others: who sees the object and who judges it
// are not at the same version, and the one behind will catch up.
func ofGeneration(found []compile.Condition, generation int64) (out []compile.Condition, current bool) {
	for _, c := range found {
		if c.Generation == generation || c.Generation == 0 || generation == 0 {
			out = append(out, c)
		}
	}
	return out, len(out) > 0 || len(found) == 0
}

// targets returns what a policy names.
func (s *Seen) targets() []target {
	if len(s.Spec.TargetRefs) == 0 && s.Spec.TargetRef != nil {
		return []target{*s.Spec.TargetRef}
	}
	return s.Spec.TargetRefs
}

// must returns the JSON of a value made of strings, numbers and JSON that was
// decoded before.
func must(b []byte, err error) []byte {
	if err != nil {
		panic("status: a value made here does not encode: " + err.Error())
	}
	return b
}
