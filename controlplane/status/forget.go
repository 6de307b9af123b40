package status

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Kinds returns the kinds of objects that a Writer writes into, in order.
func Kinds() []source.Kind { return slices.Sorted(maps.Keys(resources)) }

// Resource returns what a kind of those is called in the API.
func Resource(kind source.Kind) schema.GroupVersionResource {
	return resources[kind].group.WithResource(resources[kind].name)
}

// Forget returns the merge patch of the status subresource that takes out of an
// object, which is JSON, what a Writer put into its status, or nil when there is
// nothing. What others wrote stays, another mesh's conditions of the same types too:
// who wrote is told by the object's managed fields.
func Forget(kind source.Kind, object []byte) ([]byte, error) {
	seen := &Seen{}
	if err := json.Unmarshal(object, seen); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	fields, ours := written(kind, seen)
	if !ours {
		return nil, nil
	}
	status := map[string]any{}
	if kept, changed := merge(seen.Status.Conditions, owned[kind], nil, time.Time{}); changed {
		status["conditions"] = kept
	}
	parents := slices.DeleteFunc(slices.Clone(seen.Status.Parents), func(raw json.RawMessage) bool {
		var p parentStatus
		return json.Unmarshal(raw, &p) == nil && p.ControllerName == Controller
	})
	if len(parents) < len(seen.Status.Parents) {
		status["parents"] = append([]json.RawMessage{}, parents...)
	}
	if len(seen.Status.Addresses) > 0 && fields.Status.Addresses != nil {
		status["addresses"] = nil
	}
	if len(status) == 0 {
		return nil, nil
	}
	return json.Marshal(map[string]any{"metadata": map[string]string{"resourceVersion": seen.ResourceVersion}, "status": status})
}

// fieldsWritten is what a manager of fields manages, as far as it is asked for.
type fieldsWritten struct {
	Status struct {
		Addresses json.RawMessage `json:"f:addresses"`
	} `json:"f:status"`
}

// written returns what a Writer has written into an object, if it has. Istio writes
// under the same names, but by server-side apply.
func written(kind source.Kind, seen *Seen) (fields fieldsWritten, ours bool) {
	r, known := resources[kind]
	for _, m := range seen.ManagedFields {
		if !known || m.Subresource != "status" || m.Operation != metav1.ManagedFieldsOperationUpdate || m.Manager != r.manager && m.Manager != waypointManager {
			continue
		}
		ours = true
		if m.FieldsV1 != nil {
			_ = json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) // the API server's own writing; without it nothing of that is taken
		}
	}
	return fields, ours
}
