// Package why answers, for one connection that is only imagined, what a ztunnel
// would do with it and because of what. It asks the functions that serve real
// connections, with the view of the mesh that they read: there is no second copy
// of any decision here.
//
//	a pod opens a connection ──▶ route.Choose  ──▶ ways: tunnel, direct, passthrough; or why not
//	a connection comes to a pod ▶ route.Deliver ─▶ authz.Explain ──▶ the policy that decides
//
// One ztunnel sees one half; who wants the whole way asks the source's ztunnel
// first and, with each of its ways, the destination's. Everything is a function
// of what is known at that moment, safe for concurrent use.
package why

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// Node is a ztunnel's live state.
type Node struct {
	Name     string
	Network  mesh.Network
	Loopback bool // PROXY application tunnels are reached on loopback
	Mesh     workloads.View
	// Pod returns the proxy of a pod that was handed to this ztunnel, nil for others,
	// and whether it serves.
	Pod func(mesh.PodInfo) (proxy Proxy, up bool)
	// Certificate tells the state of an identity's certificate, and until when it is valid.
	Certificate func(mesh.Identity) (state string, until time.Time)
}

// Proxy is what serves a pod's connections, asked before there is one. *proxy.Pod
// is one.
type Proxy interface {
	// Self returns the workload that the pod is served as; nil while it is unknown.
	Self() *mesh.Workload
	Choose(context.Context, route.Flow) (route.Route, error)
	Deliver(context.Context, route.Arrival) (route.Delivery, error)
	Explain(self *mesh.Workload, c authz.Connection) authz.Explanation
}

// Pod names a pod in a question.
type Pod struct {
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
}

func (p Pod) info() mesh.PodInfo {
	return mesh.PodInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Question is about one connection: one that the pod opens to Dst, or one that
// comes to it.
type Question struct {
	Pod      Pod            `json:"pod"`
	Waypoint bool           `json:"waypoint,omitempty"` // the pod is a waypoint: no ztunnel serves it, it tunnels by itself
	Dst      netip.AddrPort `json:"dst,omitzero"`
	Arriving *Arriving      `json:"arriving,omitempty"`
}

// Arriving is a connection that comes to a pod: a CONNECT in a tunnel, or, without
// an authority, plain TCP.
type Arriving struct {
	Source    netip.Addr     `json:"source"`             // the client's address
	Identity  string         `json:"identity,omitempty"` // that its tunnel proves; "" = none
	Dst       netip.AddrPort `json:"dst"`                // where the tunnel, or the plain connection, comes to
	Authority string         `json:"authority,omitempty"`
}

// Step is one thing that was looked at, and what came of it.
type Step struct {
	What    string   `json:"what"`
	Subject string   `json:"subject,omitempty"`
	Result  string   `json:"result"`
	Detail  []string `json:"detail,omitempty"`
}

// Answer is what the ztunnel would do.
type Answer struct {
	Node     string `json:"node"`
	Captured bool   `json:"captured"` // the pod's connections pass through this ztunnel
	Steps    []Step `json:"steps"`
	Ways     []Way  `json:"ways,omitempty"` // where an opened connection may go; one of them by chance
	// Program is where an arriving connection is handed to the program in the pod.
	Program netip.AddrPort `json:"program,omitzero"`
	Allowed bool           `json:"allowed"`
	Reason  string         `json:"reason,omitempty"` // a word of the list that access logs use
	Error   string         `json:"error,omitempty"`  // as the access log would say it
	Policy  string         `json:"policy,omitempty"` // that decided, namespace/name
	Change  []string       `json:"change,omitempty"` // what would change the answer
}

// Way is one place that an opened connection may go to.
type Way struct {
	Share     float64        `json:"share"` // how likely, of 1
	Kind      string         `json:"kind"`  // tunnel, double tunnel, direct, passthrough
	Next      netip.AddrPort `json:"next"`
	Hostname  string         `json:"hostname,omitempty"` // resolved when dialled, in the place of Next's address
	Authority string         `json:"authority,omitempty"`
	Source    netip.Addr     `json:"source,omitzero"`    // the client's address
	Identity  string         `json:"identity,omitempty"` // that the client's tunnel proves
	Expect    []string       `json:"expect,omitempty"`   // of which the peer must prove one
	Service   string         `json:"service,omitempty"`
	Waypoint  bool           `json:"waypoint,omitempty"`
	Workload  *Workload      `json:"workload,omitempty"` // at Next
	Text      string         `json:"text"`
}

// Workload is a workload, as far as the next question needs it.
type Workload struct {
	UID            string `json:"uid"`
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
	Node           string `json:"node"`
	Identity       string `json:"identity"`
	HBONE          bool   `json:"hbone"`
}

func describe(w *mesh.Workload) *Workload {
	if w == nil {
		return nil
	}
	return &Workload{
		UID: string(w.UID), Namespace: w.Namespace, Name: w.Name, ServiceAccount: w.ServiceAccount,
		Node: w.Node, Identity: w.Identity().String(), HBONE: w.Protocol == mesh.HBONE,
	}
}

// Explain answers a question. It may wait for the control plane where workloads are
// asked for on demand.
func (n *Node) Explain(ctx context.Context, q Question) Answer {
	if q.Arriving != nil {
		return n.arrive(ctx, q.Pod, *q.Arriving)
	}
	return n.leave(ctx, q)
}

// answer is an Answer in the making.
type answer struct {
	Answer
	node    *Node
	proxy   Proxy  // of the pod; nil when it was not handed over
	closed  bool   // the pod was handed over, and its listeners are not open
	lacking string // why the pod's own certificate is not there; "" = it is, or may be
}

func (n *Node) begin() *answer { return &answer{node: n, Answer: Answer{Node: n.Name}} }

func (a *answer) step(what, subject, format string, args ...any) *Step {
	a.Steps = append(a.Steps, Step{What: what, Subject: subject, Result: fmt.Sprintf(format, args...)})
	return &a.Steps[len(a.Steps)-1]
}

func (a *answer) change(format string, args ...any) {
	a.Change = append(a.Change, fmt.Sprintf(format, args...))
}

// self says who the pod is, and what it has to do with this ztunnel; nil when the
// control plane has not told.
func (a *answer) self(p Pod, waypoint bool) *mesh.Workload {
	proxy, up := a.node.Pod(p.info())
	here := proxy != nil
	a.proxy, a.Captured, a.closed = proxy, here && up, here && !up
	w := a.node.Mesh.WorkloadByInfo(p.info(), "")
	if here {
		w = proxy.Self()
	}
	switch {
	case waypoint && w != nil:
		a.step("pod", p.String(), "a waypoint, which tunnels by itself as %s", w.Identity())
	case here && !up:
		a.step("pod", p.String(), "was handed to the ztunnel of %s, whose listeners in it are not open yet", a.node.Name)
	case !here:
		a.step("pod", p.String(), "is not in the mesh: its connections do not pass through the ztunnel of %s", a.node.Name)
	case w == nil:
		a.step("pod", p.String(), "is served by the ztunnel of %s, but the control plane has not sent its workload", a.node.Name)
	default:
		a.step("pod", p.String(), "in the mesh, served by the ztunnel of %s", a.node.Name)
	}
	if w != nil && here {
		a.certificate(w.Identity())
	}
	return w
}

// certificate tells whether an identity can be proved.
func (a *answer) certificate(id mesh.Identity) {
	state, until := a.node.Certificate(id)
	if strings.HasPrefix(state, "Unavailable") {
		a.lacking = state
	}
	if until.IsZero() {
		a.step("certificate", id.String(), "%s", state)
		return
	}
	a.step("certificate", id.String(), "%s, valid until %s (%s from now)", state, until.UTC().Format(time.RFC3339), time.Until(until).Round(time.Second))
}

// unproved refuses a tunnel whose end here cannot prove who it is, and reports
// whether it did.
func (a *answer) unproved(id mesh.Identity) bool {
	if a.lacking == "" {
		return false
	}
	a.refuse(reason.Newf(reason.NoCertificate, "open tunnel", id.String(), "%s", a.lacking))
	a.change("the CA has to issue the certificate of %s: %s", id, a.lacking)
	return true
}

// traced appends the steps of a decision of package route.
func (a *answer) traced(steps []route.Step) {
	for _, s := range steps {
		step := a.step(s.What, strings.TrimPrefix(s.Subject, "/"), "%s", s.Result) // an address of the network without a name
		ranked := differ(s.Candidates)
		for _, c := range s.Candidates {
			step.Detail = append(step.Detail, candidateText(c, ranked))
		}
	}
}

// differ reports whether some candidates are preferred to others.
func differ(list []route.Candidate) bool {
	ranks := map[int]bool{}
	for _, c := range list {
		if c.Excluded == "" {
			ranks[c.Rank] = true
		}
	}
	return len(ranks) > 1
}

func candidateText(c route.Candidate, ranked bool) string {
	text := fmt.Sprintf("%s/%s", c.Workload.Namespace, c.Workload.Name)
	if c.Workload.Node != "" {
		text += " on " + c.Workload.Node
	}
	if c.Port != 0 {
		text += fmt.Sprintf(", port %d", c.Port)
	}
	text += fmt.Sprintf(", weight %d", c.Weight)
	if ranked && c.Excluded == "" {
		text += fmt.Sprintf(", rank %d", c.Rank)
	}
	switch {
	case c.Excluded != "":
		return text + ": cannot be used: " + c.Excluded
	case c.Chosen:
		return text + ": chosen"
	}
	return text
}

// names joins what people should choose from.
func names(list []string, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, ", ")
}
