package proxy

import (
	"container/list"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// How many failures are kept, and how long a text in one may be. With every text
// at its longest, which peers can bring about, the node's take 4 MiB.
const (
	failuresPerPod  = 32
	failuresPerNode = 1024
	maxFailureText  = 300
)

// Failure is a connection that failed, for people: what the access log says, and
// which part of the way it got to.
type Failure struct {
	Time        time.Time `json:"time"` // when it had failed
	Pod         string    `json:"pod"`  // namespace/name of the pod whose connection it was
	Direction   string    `json:"direction"`
	Source      FailedEnd `json:"source"`
	Destination FailedEnd `json:"destination"`
	Dialled     string    `json:"dialled,omitempty"` // the address or authority that was asked for
	HBONE       string    `json:"hboneAuthority,omitempty"`
	Service     string    `json:"service,omitempty"`
	Hop         string    `json:"hop"`   // what it was on the way to: local, workload, waypoint, application …
	Stage       string    `json:"stage"` // what was being done: learn, choose, dial, handshake, connect, authorize, relay
	Reason      string    `json:"reason"`
	Flag        string    `json:"responseFlags"`
	Policy      string    `json:"policy,omitempty"` // namespace/name of the policy that denied
	Error       string    `json:"error"`
	BytesSent   uint64    `json:"bytesSent"`
	BytesRecv   uint64    `json:"bytesRecv"`
	Timings     Timings   `json:"timings"`
}

// Involves reports whether a pod, "namespace/name", is on either side.
func (f *Failure) Involves(pod string) bool {
	return f.Pod == pod || f.Source.is(pod) || f.Destination.is(pod)
}

// FailedEnd is one side of a Failure.
type FailedEnd struct {
	Addr      string `json:"addr,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Identity  string `json:"identity,omitempty"`
}

func (e *FailedEnd) is(pod string) bool {
	namespace, name, _ := strings.Cut(pod, "/")
	return e.Workload == name && e.Namespace == namespace
}

// Timings are milliseconds; what was not reached, or not waited for, is left out.
type Timings struct {
	Total   float64 `json:"total"`
	Learn   float64 `json:"learn,omitempty"`   // until the pod's own workload was known
	Choose  float64 `json:"choose,omitempty"`  // the decision where to, or, inbound, who may
	Dial    float64 `json:"dial,omitempty"`    // TCP connect
	TLS     float64 `json:"tls,omitempty"`     // certificate and handshake
	Connect float64 `json:"connect,omitempty"` // from the CONNECT to its answer
	Reused  bool    `json:"reusedTunnel,omitempty"`
	Relay   float64 `json:"relay,omitempty"` // since the bytes flowed
}

// flights keeps the latest failed connections of each pod, in memory and nowhere
// else, and those of a pod that has gone for as long as there is room. The zero
// value is ready to use. Connections that succeed never come here.
type flights struct {
	mu   sync.Mutex
	all  list.List                  // of *flight, oldest first
	pods map[mesh.PodInfo][]*flight // oldest first
}

type flight struct {
	pod     mesh.PodInfo
	at      *list.Element
	failure Failure
}

// add keeps a failure, and drops the pod's oldest, or else the node's, if there
// are too many.
func (f *flights) add(pod mesh.PodInfo, failure Failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pods == nil {
		f.pods = make(map[mesh.PodInfo][]*flight)
	}
	switch {
	case len(f.pods[pod]) >= failuresPerPod:
		f.dropLocked(f.pods[pod][0])
	case f.all.Len() >= failuresPerNode:
		f.dropLocked(f.all.Front().Value.(*flight))
	}
	e := &flight{pod: pod, failure: failure}
	e.at = f.all.PushBack(e)
	f.pods[pod] = append(f.pods[pod], e)
}

// dropLocked forgets e, which is its pod's oldest.
func (f *flights) dropLocked(e *flight) {
	f.all.Remove(e.at)
	left := append(f.pods[e.pod][:0], f.pods[e.pod][1:]...)
	if f.pods[e.pod] = left; len(left) == 0 {
		delete(f.pods, e.pod)
	}
}

// Failures returns the failed connections that are remembered and that wanted
// accepts, oldest first; all of them for nil.
func (n *Node) Failures(wanted func(*Failure) bool) []Failure {
	n.flights.mu.Lock()
	defer n.flights.mu.Unlock()
	out := []Failure{}
	for e := n.flights.all.Front(); e != nil; e = e.Next() {
		f := &e.Value.(*flight).failure
		if wanted == nil || wanted(f) {
			out = append(out, *f)
		}
	}
	return out
}

// hop is what a connection was on the way to.
type hop uint8

const (
	hopLocal hop = iota // it never left this ztunnel
	hopOutside
	hopDirect
	hopWorkload
	hopWaypoint
	hopGateway
	hopTunnel      // inbound: it was still a tunnel's handshake
	hopApplication // inbound
)

func (h hop) String() string {
	return [...]string{"local", "outside", "direct", "workload", "waypoint", "gateway", "tunnel", "application"}[h]
}

// stage is how far a connection got.
type stage uint8

const (
	stageLearn stage = iota // its own workload was not known yet
	stageChoose
	stageOpen
	stageRelay
	stages
)

// failure describes a connection that has ended with err.
func (r *record) failure(pod mesh.PodInfo, err error) Failure {
	why := reason.Of(err)
	f := Failure{
		Time:        time.Now(),
		Pod:         pod.String(),
		Direction:   r.line.Direction.String(),
		Source:      failedEnd(&r.line.Source),
		Destination: failedEnd(&r.line.Destination),
		HBONE:       bounded(r.line.HBONEAddr),
		Service:     r.line.Service,
		Hop:         r.hop.String(),
		Stage:       r.failedStage(why),
		Reason:      string(why),
		Flag:        why.Flag(),
		Policy:      policyOf(err),
		Error:       bounded(err.Error()),
		BytesSent:   r.line.BytesSent,
		BytesRecv:   r.line.BytesRecv,
		Timings:     r.timings(),
	}
	f.Dialled = f.HBONE
	if r.line.Direction == accesslog.Outbound || r.plain {
		f.Dialled = addrText(r.dialled)
	}
	return f
}

// failedStage names what was being done. Of opening a tunnel the reason says more
// than the clock: several connections may have waited for the same handshake.
func (r *record) failedStage(why reason.Reason) string {
	switch {
	case r.hop == hopTunnel, why.Flag() == "TLS_FAILURE", why.Flag() == "IDENTITY_ERROR", why.Flag() == "H2_HANDSHAKE_FAILURE", why.Flag() == "CERT_REVOKED":
		return "handshake"
	case why.Flag() == "DENY" && why != reason.PolicyChanged:
		return "authorize"
	case r.reached == stageLearn:
		return "learn"
	case r.reached == stageChoose:
		return "choose"
	case r.reached == stageRelay:
		return "relay"
	case why == reason.TunnelStatus, why == reason.TunnelReset, why == reason.TunnelClosed:
		return "connect"
	}
	return "dial"
}

// timings tells how long each stage took; the last one lasted until the end.
func (r *record) timings() Timings {
	t := Timings{Total: millis(r.line.Duration)}
	took := func(s stage) float64 {
		if s > r.reached {
			return 0
		}
		began, ended := time.Duration(0), r.line.Duration
		if s > 0 {
			began = r.marks[s-1]
		}
		if s < r.reached {
			ended = r.marks[s]
		}
		return millis(ended - began)
	}
	t.Learn, t.Choose, t.Relay = took(stageLearn), took(stageChoose), took(stageRelay)
	t.Dial, t.TLS, t.Connect, t.Reused = millis(r.timing.Dial), millis(r.timing.TLS), millis(r.timing.Connect), r.timing.Reused
	if open := took(stageOpen); t.Dial+t.TLS+t.Connect == 0 {
		t.Dial = open
	}
	return t
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// policyOf finds which policy denied.
func policyOf(err error) string {
	var denied interface{ Policy() mesh.PolicyName }
	if !errors.As(err, &denied) || denied.Policy() == (mesh.PolicyName{}) {
		return ""
	}
	return denied.Policy().String()
}

func failedEnd(p *accesslog.Party) FailedEnd {
	return FailedEnd{addrText(p.Addr), bounded(p.Workload), bounded(p.Namespace), bounded(p.Identity.String())}
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

// bounded cuts what a peer may have chosen, and holds on to no more of it.
func bounded(s string) string {
	if len(s) <= maxFailureText {
		return s
	}
	return strings.ToValidUTF8(strings.Clone(s[:maxFailureText]), "") + "…"
}
