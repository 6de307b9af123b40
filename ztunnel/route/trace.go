package route

import (
	"fmt"
	"strconv"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// Step is one thing that a decision looked at, for people. Subject and Result say
// all; what they speak of is attached where there is any.
type Step struct {
	What    string `json:"what"`    // address, waypoint, port, endpoints, gateway, decision; authority, port, delivery
	Subject string `json:"subject"` // what was looked at
	Result  string `json:"result"`  // what came of it

	Service    *mesh.Service  `json:"-"`
	Gateway    *mesh.Gateway  `json:"-"`
	Workload   *mesh.Workload `json:"-"`
	Candidates []Candidate    `json:"-"` // of endpoints
}

// Candidate is one endpoint of a service and what became of it.
type Candidate struct {
	Workload *mesh.Workload
	Port     uint16 // on the workload
	Rank     int    // the highest are chosen from; see trusted and nearness
	Weight   uint32
	Chosen   bool
	Excluded string // why it cannot be used; empty when it can
}

// String returns "what subject: result".
func (s Step) String() string { return s.What + " " + s.Subject + ": " + s.Result }

// Trace collects the steps of one decision. A nil Trace collects nothing and
// costs nothing. It belongs to one decision at a time.
type Trace struct {
	Steps []Step
}

func (t *Trace) add(s Step) { t.Steps = append(t.Steps, s) }

func (t *Trace) note(what, subject, result string) {
	t.add(Step{What: what, Subject: subject, Result: result})
}

// gateway tells what a reference to a waypoint or network gateway led to.
func (t *Trace) gateway(what string, gw mesh.Gateway, w *mesh.Workload, result string) {
	t.add(Step{What: what, Subject: gw.String(), Result: result, Gateway: &gw, Workload: w})
}

// owner tells whom an address belongs to.
func (t *Trace) owner(addr mesh.NetAddr, svc *mesh.Service, w *mesh.Workload) {
	s := Step{What: "address", Subject: addr.String(), Service: svc, Workload: w}
	switch {
	case svc != nil && w != nil:
		s.Result = workloadText(w) + ", and claimed by " + serviceText(svc)
	case svc != nil:
		s.Result = serviceText(svc)
	case w != nil:
		s.Result = workloadText(w)
	default:
		s.Result = "unknown to the mesh"
	}
	t.add(s)
}

// endpoints tells what balance made of a service's endpoints; chosen is nil when
// none could be used.
func (t *Trace) endpoints(b *balancer, all []workloads.Endpoint, chosen *mesh.Workload, port uint16) {
	s := Step{What: "endpoints", Subject: "of " + serviceText(b.svc), Service: b.svc, Workload: chosen}
	usable := 0
	for i := range all {
		e, w := b.judge(&all[i]), all[i].Workload
		if e.why == "" && w.Capacity == 0 {
			e.why = "its capacity is 0"
		}
		if e.why == "" {
			usable++
		}
		s.Candidates = append(s.Candidates, Candidate{w, e.port, e.rank, w.Capacity, w == chosen, e.why})
	}
	if chosen == nil {
		s.Result = fmt.Sprintf("none of %d can be used", len(all))
	} else {
		s.Result = fmt.Sprintf("%s, port %d, of %d that can be used", workloadText(chosen), port, usable)
	}
	t.add(s)
}

func serviceText(svc *mesh.Service) string { return "service " + svc.Key().String() }

func workloadText(w *mesh.Workload) string { return "workload " + string(w.UID) }

func portText(port uint16) string { return strconv.Itoa(int(port)) }
