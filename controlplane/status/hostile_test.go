package status

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// TestWriterPanic: an object that nobody thought of holds up no other, and ends
// nothing.
func TestWriterPanic(t *testing.T) {
	t.Parallel()
	a, j := newAPI("good", "bad"), &judge{found: map[string]bool{"good": true, "bad": true}}
	a.meddle = func(name string) {
		if name == "bad" {
			panic("nobody thought of that")
		}
	}
	lead(t, a, j, func(*Writer) {
		time.Sleep(time.Second)
		if got := a.reason(t, "good"); got != "Accepted" {
			t.Errorf("the other object: %s", got)
		}
	})
}

// TestLongMessages: what people write is repeated within limits.
func TestLongMessages(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 100_000)
	for _, c := range []compile.Condition{
		{Type: compile.WaypointBound, Status: true, Message: long},
		{Type: compile.WaypointMissing, Reason: reason.Unsupported, Message: long},
	} {
		patch := Desired(source.KindService, &Seen{}, Found{Conditions: []compile.Condition{c}}, noon)
		if len(patch) == 0 || len(patch) > 3*maxMessage {
			t.Errorf("%s: %d bytes", c.Type, len(patch))
		}
	}
}

// FuzzDesired: whatever stands in an object's status and spec, there is a patch that
// is JSON, that keeps what others wrote, and after which nothing is left to write.
func FuzzDesired(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"generation":1,"resourceVersion":"1"},"spec":{"parentRefs":[{"kind":"Service","group":"","name":"a"}],"rules":[{}]},"status":{"parents":[{"controllerName":"culvert-mesh.github.io/mesh-controller","parentRef":{"name":"b"},"conditions":[{"type":"Accepted"}]},{"controllerName":"other"},null,7]}}`,
		`{"spec":{"targetRefs":[{"kind":"Service","name":"a"},{}],"targetRef":{}},"status":{"conditions":[{"type":"WaypointAccepted","status":"True","observedGeneration":"x"},[],null,{"type":7}],"addresses":[{}]}}`,
		`{"spec":null,"status":null}`,
	} {
		f.Add([]byte(seed), "spec.parentRefs[0]", "spec.rules[0].matches", int64(1), uint8(3))
	}
	kinds := []source.Kind{source.KindHTTPRoute, source.KindAuthorizationPolicy, source.KindPeerAuthentication, source.KindService, source.KindServiceEntry, source.KindGRPCRoute}
	f.Fuzz(func(t *testing.T, object []byte, field, other string, generation int64, bits uint8) {
		seen := &Seen{}
		if json.Unmarshal(object, seen) != nil {
			return
		}
		var found Found
		for i, kind := range []string{compile.Accepted, compile.ResolvedRefs, compile.WaypointBound, compile.WaypointAccepted, compile.ZtunnelAccepted, compile.WaypointMissing} {
			found.Conditions = append(found.Conditions, compile.Condition{Type: kind, Status: bits>>i&1 == 1, Reason: reason.NoWaypoint,
				Field: []string{field, other}[i%2], Message: other, Partial: bits&64 != 0, Generation: generation})
		}
		for _, kind := range kinds {
			patch := Desired(kind, seen, found, noon)
			if patch == nil {
				continue
			}
			next := &Seen{}
			if err := errors.Join(json.Unmarshal(object, next), json.Unmarshal(patch, next)); err != nil {
				t.Fatalf("%s: %v", patch, err)
			}
			if others(next.Status.Parents) != others(seen.Status.Parents) {
				t.Errorf("somebody else's words are gone: %s", patch)
			}
			if again := Desired(kind, next, found, noon.Add(time.Hour)); again != nil {
				t.Errorf("%s: written once more: %s after %s", kind, again, patch)
			}
		}
	})
}

// others counts the entries that are not ours.
func others(parents []json.RawMessage) (n int) {
	for _, raw := range parents {
		var p parentStatus
		if json.Unmarshal(raw, &p) != nil || p.ControllerName != Controller {
			n++
		}
	}
	return n
}
