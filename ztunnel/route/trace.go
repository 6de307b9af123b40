package route

import (
	"fmt"
	"strconv"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Step is one thing that a decision looked at, for people.
type Step struct {
	What    string `json:"what"`    // "address", "waypoint", "endpoint", "gateway", "authority", "port" …
	Subject string `json:"subject"` // what was looked at
	Result  string `json:"result"`  // what came of it
}

// String returns "what subject: result".
func (s Step) String() string { return s.What + " " + s.Subject + ": " + s.Result }

// Trace collects the steps of one decision. A nil Trace collects nothing and
// costs nothing. It belongs to one decision at a time.
type Trace struct {
	Steps []Step
}

func (t *Trace) note(what, subject, result string) {
	t.Steps = append(t.Steps, Step{what, subject, result})
}

func (t *Trace) notef(what, subject, format string, args ...any) {
	t.note(what, subject, fmt.Sprintf(format, args...))
}

func serviceText(svc *mesh.Service) string { return "service " + svc.Key().String() }

func workloadText(w *mesh.Workload) string { return "workload " + string(w.UID) }

// candidate tells what balance made of one endpoint.
func (t *Trace) candidate(w *mesh.Workload, v judgement) {
	switch {
	case v.why != "":
		t.note("endpoint", string(w.UID), "not used: "+v.why)
	case w.Capacity == 0:
		t.note("endpoint", string(w.UID), "not used: its capacity is 0")
	default:
		t.notef("endpoint", string(w.UID), "can serve on port %d, rank %d, weight %d", v.port, v.rank, w.Capacity)
	}
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }

// owner tells whom an address belongs to.
func (t *Trace) owner(addr mesh.NetAddr, svc *mesh.Service, w *mesh.Workload) {
	switch {
	case svc != nil && w != nil:
		t.note("address", addr.String(), workloadText(w)+", and claimed by "+serviceText(svc))
	case svc != nil:
		t.note("address", addr.String(), serviceText(svc))
	case w != nil:
		t.note("address", addr.String(), workloadText(w))
	default:
		t.note("address", addr.String(), "unknown to the mesh")
	}
}
