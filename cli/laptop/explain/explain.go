// Package explain puts together what several ztunnels say about one imagined
// connection, hop by hop:
//
//	source's ztunnel ── why.Question{pod, dst} ──▶ ways
//	    each way, to a workload ── its node's ztunnel ── why.Question{arriving} ──▶ verdict
//	    each way, to a waypoint ── as the waypoint's own connection, on from there
//
// It decides nothing itself: it asks, follows, and adds up. Functions are safe for
// concurrent use.
package explain

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/ztunnel/why"
)

// Mesh is what is asked.
type Mesh interface {
	// Ask asks the ztunnel of a node.
	Ask(ctx context.Context, node string, q why.Question) (why.Answer, error)
	// Listens reports whether a pod's program listens on a port; known is false
	// when nobody can tell.
	Listens(pod why.Pod, port uint16) (listens, known bool)
	// Held tells the state of the certificate that a waypoint holds for an identity;
	// "" when nobody can tell.
	Held(ctx context.Context, waypoint why.Pod, identity string) string
}

// Verdicts.
const (
	Allowed     = "allowed"
	Denied      = "denied"
	Unreachable = "unreachable"
	InPart      = "allowed in part"
	Unknown     = "unknown"
)

// Explanation is the whole way of one connection.
type Explanation struct {
	From    string         `json:"from"`
	To      string         `json:"to"`
	Lookup  *Lookup        `json:"lookup,omitempty"` // nil when an address was given
	Address netip.AddrPort `json:"address,omitzero"`
	Verdict string         `json:"verdict"`
	Reason  string         `json:"reason,omitempty"` // a word of the list that access logs use
	Error   string         `json:"error,omitempty"`  // as the access log would say it
	Policy  string         `json:"policy,omitempty"` // that decides, namespace/name
	L7      string         `json:"l7,omitempty"`     // the waypoint whose rules decide besides
	Hops    []Hop          `json:"hops"`
	Change  []string       `json:"change"` // what would change the verdict
}

// Lookup is how a name was resolved.
type Lookup struct {
	Host      string       `json:"host"`
	Addresses []netip.Addr `json:"addresses"`
	Error     string       `json:"error,omitempty"`
}

// Hop is what one ztunnel says.
type Hop struct {
	Title   string     `json:"title"`
	Node    string     `json:"node,omitempty"`
	Share   float64    `json:"share"` // of 1, how likely the connection comes here
	Verdict string     `json:"verdict"`
	Error   string     `json:"error,omitempty"`
	Steps   []why.Step `json:"steps"`
}

// Start is where a connection begins.
type Start struct {
	Pod      why.Pod
	Waypoint bool // the pod is a waypoint
	Node     string
	Dst      netip.AddrPort
}

// walk is an Explanation in the making.
type walk struct {
	Explanation
	mesh   Mesh
	shares map[string]float64 // by verdict
	seen   map[string]bool    // changes
}

// Follow explains the connection from its first ztunnel to its last.
func Follow(ctx context.Context, m Mesh, s Start) (Explanation, error) {
	w := &walk{mesh: m, shares: map[string]float64{}, seen: map[string]bool{}}
	w.From, w.Address = s.Pod.String(), s.Dst
	a, err := m.Ask(ctx, s.Node, why.Question{Pod: s.Pod, Waypoint: s.Waypoint, Dst: s.Dst})
	if err != nil {
		return w.Explanation, err
	}
	w.leave(ctx, a, "leaving "+s.Pod.String(), 1, s.Dst, s.Waypoint)
	w.sum()
	return w.Explanation, nil
}

func (w *walk) hop(title string, a why.Answer, share float64, verdict string) *Hop {
	w.Hops = append(w.Hops, Hop{Title: title, Node: a.Node, Share: share, Verdict: verdict, Error: a.Error, Steps: a.Steps})
	return &w.Hops[len(w.Hops)-1]
}

// ended notes that a share of the connections ends with a verdict.
func (w *walk) ended(share float64, verdict string, a why.Answer) {
	if w.shares[verdict] == 0 && verdict != Allowed {
		w.Reason, w.Error = a.Reason, a.Error
	}
	if a.Policy != "" && (w.Policy == "" || verdict == Denied) {
		w.Policy = a.Policy
	}
	w.shares[verdict] += share
	for _, c := range a.Change {
		if !w.seen[c] {
			w.seen[c] = true
			w.Change = append(w.Change, c)
		}
	}
}

// leave follows every way out. fromWaypoint says that the ways are a waypoint's.
func (w *walk) leave(ctx context.Context, a why.Answer, title string, share float64, dst netip.AddrPort, fromWaypoint bool) {
	if !a.Allowed {
		w.hop(title, a, share, Unreachable)
		w.ended(share, Unreachable, a)
		return
	}
	w.hop(title, a, share, Allowed)
	for _, way := range a.Ways {
		part := share * way.Share
		switch {
		case way.Waypoint && !fromWaypoint:
			w.waypoint(ctx, way, part, dst)
		case way.Workload == nil || way.Workload.Node == "" || !way.Next.Addr().IsValid():
			w.outside(way, part)
		default:
			w.arrive(ctx, way, part)
		}
	}
}

// outside is the end of a way that no ztunnel of ours sees.
func (w *walk) outside(way why.Way, share float64) {
	a := why.Answer{Allowed: true, Steps: []why.Step{{What: "decision", Result: way.Text + ": from there on the mesh decides nothing"}}}
	w.hop("outside the mesh", a, share, Allowed)
	w.ended(share, Allowed, a)
}

// waypoint goes on with the connections that the waypoint will make: its rules for
// requests decide first, and the destination's policies then see the waypoint.
func (w *walk) waypoint(ctx context.Context, way why.Way, share float64, dst netip.AddrPort) {
	pod := podOf(way.Workload)
	w.L7 = pod.String()
	title := fmt.Sprintf("at the waypoint %s, whose rules for requests decide; if they let it pass", pod)
	a, err := w.mesh.Ask(ctx, way.Workload.Node, why.Question{Pod: pod, Waypoint: true, Dst: dst})
	if err != nil {
		w.unknown(title, way, share, err)
		return
	}
	if state := w.mesh.Held(ctx, pod, way.Workload.Identity); state != "" {
		a.Steps = append([]why.Step{{What: "certificate", Subject: way.Workload.Identity, Result: state}}, a.Steps...)
	}
	w.leave(ctx, a, title, share, dst, true)
}

// arrive asks the ztunnel at the end of a way.
func (w *walk) arrive(ctx context.Context, way why.Way, share float64) {
	pod := podOf(way.Workload)
	title := "arriving at " + pod.String()
	in := way.InTunnel()
	a, err := w.mesh.Ask(ctx, way.Workload.Node, why.Question{Pod: pod, Arriving: &in})
	if err != nil {
		w.unknown(title, way, share, err)
		return
	}
	verdict := Allowed
	switch {
	case !a.Allowed && a.Policy == "" && a.Reason != "allow policies exist, but none allowed":
		verdict = Unreachable
	case !a.Allowed:
		verdict = Denied
	case a.Program.IsValid():
		verdict = w.program(&a, pod)
	}
	w.hop(title, a, share, verdict)
	w.ended(share, verdict, a)
}

// program adds whether anybody listens where the connection ends.
func (w *walk) program(a *why.Answer, pod why.Pod) string {
	port := a.Program.Port()
	listens, known := w.mesh.Listens(pod, port)
	switch {
	case !known:
		return Allowed
	case listens:
		a.Steps = append(a.Steps, why.Step{What: "program", Subject: fmt.Sprintf("port %d", port), Result: "listens"})
		return Allowed
	}
	a.Steps = append(a.Steps, why.Step{What: "program", Subject: fmt.Sprintf("port %d", port), Result: "nothing listens"})
	a.Allowed, a.Reason, a.Error = false, "connection refused", fmt.Sprintf("connect %s: connection refused", a.Program)
	a.Change = []string{fmt.Sprintf("a program in %s that listens on port %d", pod, port)}
	return Unreachable
}

func (w *walk) unknown(title string, way why.Way, share float64, err error) {
	a := why.Answer{Node: way.Workload.Node, Error: err.Error(), Steps: []why.Step{{What: "ztunnel", Subject: way.Workload.Node, Result: "cannot be asked: " + err.Error()}}}
	w.hop(title, a, share, Unknown)
	w.ended(share, Unknown, a)
}

// sum makes one verdict of the shares.
func (w *walk) sum() {
	if w.Change == nil {
		w.Change = []string{}
	}
	for _, v := range []string{Allowed, Denied, Unreachable, Unknown} {
		if w.shares[v] > 0 && len(w.shares) == 1 {
			w.Verdict = v
			return
		}
	}
	switch {
	case w.shares[Allowed] > 0:
		w.Verdict = InPart
	case w.shares[Denied] > 0:
		w.Verdict = Denied
	default:
		w.Verdict = Unreachable
	}
}

func podOf(w *why.Workload) why.Pod {
	return why.Pod{Namespace: w.Namespace, Name: w.Name, ServiceAccount: w.ServiceAccount}
}
