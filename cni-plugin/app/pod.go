package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/zds"
)

// state is how far a pod is.
type state uint8

const (
	out      state = iota // not captured
	pending               // to be captured; rules may be in already, no ztunnel has taken it
	enrolled              // a ztunnel has taken it, and rules are in
	leaving               // nothing new is captured, older connections go on
)

func (s state) String() string { return [...]string{"out", "pending", "enrolled", "leaving"}[s] }

// Waits between attempts, and between looks at a pod that leaves.
const (
	minRetry   = 5 * time.Millisecond
	maxRetry   = 5 * time.Second
	leaveCheck = 500 * time.Millisecond
)

// pod is one pod of the node. Whoever holds its turn changes it.
type pod struct {
	agent *Agent
	uid   mesh.PodUID
	name  mesh.PodInfo
	log   *slog.Logger
	wake  chan struct{}
	turn  chan struct{} // holds one token; taking it is the lock

	// Guarded by agent.mu.
	spec      enroll.Pod
	removed   bool         // the source has it no more
	refused   bool         // a ztunnel did not take it from the snapshot
	member    bool         // belongs into ztunnel's snapshot
	announced []netip.Addr // ips, while it is a member
	shared    *netns.NS    // ns, for the snapshot; nil = not found
	shown     state        // state, for people
	lastErr   string

	// Guarded by turn.
	ns      *netns.NS // the pod's namespace while it is captured
	ips     []netip.Addr
	rules   string           // what was applied last
	options redirect.Options // and what it was made of
	steps   steps
	state   state
	leftAt  time.Time
	torn    bool   // the runtime has taken the pod's namespace down
	sandbox string // the container ID that the pod was announced with last; "" = by another agent
	taken   bool   // a ztunnel took it from an earlier agent
	noted   string
	noteSet bool // noted is what the patches folder says
	missed  bool // its runtime may have asked while no agent answered
	skipped bool // it was told why the pod cannot join
	upkeep  upkeep
}

// staticPod is the annotation of a pod that a kubelet read from a file; its value is
// how the kubelet and the runtime know the pod.
const staticPod = "kubernetes.io/config.mirror"

// called reports whether a runtime means this pod; uid is "" when it does not say.
func (p *pod) called(namespace, name, uid string) bool {
	return p.spec.Namespace == namespace && p.spec.Name == name &&
		(uid == "" || uid == string(p.uid) || uid == p.spec.Annotations[staticPod])
}

func newPod(a *Agent, spec enroll.Pod) *pod {
	p := &pod{agent: a, uid: spec.UID, name: spec.Info(), spec: spec, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	p.log = a.log.With("pod", spec.Namespace+"/"+spec.Name, "uid", spec.UID)
	p.turn <- struct{}{}
	return p
}

// poke makes the pod's goroutine look at it again.
func (p *pod) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pod) lock(ctx context.Context) error {
	select {
	case <-p.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *pod) unlock() { p.turn <- struct{}{} }

// run brings the pod to where it should be, again and again, until it is gone.
func (p *pod) run(ctx context.Context) {
	backoff := run.NewBackoff(minRetry, maxRetry)
	for {
		wait, gone := p.turnOnce(ctx, backoff)
		if gone {
			p.agent.forget(p)
			return
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-p.wake:
		case <-ctx.Done():
			<-p.turn // for good: nobody changes the pod any more
			p.upkeep.stop()
			p.retire()
			p.ns.Close()
			return
		}
	}
}

// turnOnce reconciles the pod once and returns after which time to do it again,
// 0 for only when something changes, and whether the pod is gone.
func (p *pod) turnOnce(ctx context.Context, backoff *run.Backoff) (wait time.Duration, gone bool) {
	if p.lock(ctx) != nil {
		return 0, false
	}
	defer p.unlock()
	wait, gone, err := p.reconcile(ctx)
	p.show(err)
	if err != nil {
		return backoff.Next(), false
	}
	backoff.Reset()
	return wait, gone
}

func (p *pod) reconcile(ctx context.Context) (wait time.Duration, gone bool, err error) {
	w := p.agent.wanted(p)
	if w.refused && p.state == enrolled {
		p.state = pending
	}
	switch {
	case w.removed:
		return 0, true, p.drop(ctx)
	case p.torn:
		return 0, false, nil
	case w.decision.InMesh:
		err = p.joinRunning(ctx, w.spec, w.decision.Capture)
		return p.nextLook(), false, err
	}
	p.tellSkipped(w)
	wait, err = p.leave(ctx)
	p.steps.outside = p.state == out && len(w.spec.IPs) > 0
	return wait, false, err
}

// nextLook is when a pod in the mesh is looked at again though nothing has changed.
func (p *pod) nextLook() time.Duration {
	if p.steps.joined.IsZero() {
		return rulesCheck
	}
	return max(minRetry, min(p.open(time.Now()), rulesCheck))
}

// resume finds out, once, what an earlier agent did for the pod.
func (p *pod) resume() {
	<-p.turn
	defer p.unlock()
	note := p.spec.Annotations[enroll.AnnotationRedirection]
	p.noted, p.noteSet, p.missed = note, true, !p.agent.Ready() && len(p.spec.IPs) == 0
	ns, err := p.agent.parts.Finder.Find(p.uid)
	if err == nil {
		if err = podns.Check(ns, p.spec.IPs); err != nil {
			ns.Close()
		}
	}
	if err != nil {
		if note == enroll.RedirectionEnabled {
			p.publish(nil, true)
		}
		return
	}
	applied, err := redirect.Applied(ns)
	if err != nil || !applied && note == "" {
		ns.Close()
		return
	}
	p.ns, p.state, p.taken = ns, pending, applied && note == enroll.RedirectionEnabled
	p.publish(ns, true)
	p.log.Info("pod was captured before this agent started", "annotation", note)
}

// joinRunning joins a pod that runs already. One without address waits for it:
// its runtime has not got that far, and will announce it.
func (p *pod) joinRunning(ctx context.Context, spec enroll.Pod, c enroll.Capture) error {
	if p.ns == nil {
		if len(spec.IPs) == 0 {
			return p.prompt()
		}
		ns, err := p.agent.parts.Finder.Find(p.uid)
		if err != nil {
			return err
		}
		if err := podns.Check(ns, spec.IPs); err != nil {
			ns.Close()
			return err
		}
		p.adopt(ns)
	}
	return p.join(ctx, spec, c)
}

// prompt has the kubelet try at once to start a pod that it could not start without
// an agent: after a failure it waits ten seconds or more, unless the pod changes.
// So the pod changes as soon as an attempt can succeed.
func (p *pod) prompt() error {
	if !p.missed || p.agent.zds.Connected() == 0 {
		return nil
	}
	p.missed = false
	return p.annotate(enroll.RedirectionPending)
}

// adopt takes over a namespace as the pod's. A pod whose sandbox was made anew
// has another one than before.
func (p *pod) adopt(ns *netns.NS) {
	if p.ns != nil && p.ns.ID() == ns.ID() {
		ns.Close()
		return
	}
	old := p.ns
	if old != nil {
		p.agent.store.Drop(p.uid)
	}
	p.ns, p.rules, p.state, p.torn, p.taken, p.missed = ns, "", out, false, false, false
	p.steps = steps{outside: old == nil && p.steps.outside}
	p.upkeep.stop()
	p.publish(ns, false)
	old.Close()
}

// join gives the pod to ztunnel, puts the rules in and notes it on the pod, in that
// order: a rule that redirected to listeners that are not there yet would refuse
// the connections of a pod that runs. One that was outside is captured in steps.
// What is done already is left; so joining twice, or after a change, is the same.
func (p *pod) join(ctx context.Context, spec enroll.Pod, c enroll.Capture) error {
	if p.state == leaving || !p.steps.opened.IsZero() { // it comes back
		p.steps = steps{outside: true}
	}
	if p.state != enrolled {
		if err := p.give(ctx, spec); err != nil {
			return err
		}
	}
	p.options = p.optionsFor(spec, c)
	if err := p.capture(); err != nil {
		return err
	}
	if p.state != enrolled {
		if !p.taken {
			p.tell(Normal, "MeshJoined", "its traffic goes through this node's ztunnel from now on")
		}
		p.state, p.taken = enrolled, false
		p.log.Info("pod joined the mesh", "namespace", p.ns.ID().String())
	}
	return p.annotate(enroll.RedirectionEnabled)
}

// give hands the pod's namespace to ztunnel, which opens its listeners there.
func (p *pod) give(ctx context.Context, spec enroll.Pod) error {
	p.state = pending
	p.publish(p.ns, true)
	err := p.agent.zds.Add(ctx, p.uid, spec.Info(), p.ns)
	if err != nil {
		p.notTaken(err)
	}
	return err
}

// notTaken notes that the pod waits for a ztunnel. One that an earlier agent's
// ztunnel took is served by it still, until a ztunnel that has connected to this
// agent says otherwise: were it called pending, its peers would talk to it in
// plaintext for as long as ztunnel takes to reconnect.
func (p *pod) notTaken(cause error) {
	if p.taken && errors.Is(cause, zds.ErrNoZtunnel) {
		return
	}
	p.taken = false
	if err := p.annotate(enroll.RedirectionPending); err != nil {
		p.log.Error("annotation not written", "error", err)
	}
}

func (p *pod) optionsFor(spec enroll.Pod, c enroll.Capture) redirect.Options {
	o := redirect.Options{
		BypassInbound: c.BypassInbound, VirtualInterfaces: c.VirtualInterfaces, DNSCapture: c.DNS,
		ProbeSNAT: p.agent.cfg.ProbeSNAT, IPv6: true, Proc: p.agent.cfg.Proc,
	}
	if len(spec.ProbePorts) == 0 {
		return o
	}
	ips := slices.Clone(p.ips)
	for _, ip := range spec.IPs {
		if !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	for _, ip := range ips {
		src, err := probeSource(ip)
		if err != nil {
			p.log.Warn("probes of the pod will pass through ztunnel", "error", err)
			continue
		}
		o.Probes = append(o.Probes, redirect.Probe{Source: src, Ports: spec.ProbePorts})
	}
	return o
}

// leave takes the pod out in steps: plaintext is let in; no new connection is
// redirected; the control plane learns it; when no redirected connection is left
// and others have had time to learn it too, ztunnel lets go and the last rules are
// removed.
func (p *pod) leave(ctx context.Context) (wait time.Duration, err error) {
	switch p.state {
	case out:
		return 0, p.annotate("")
	case pending, enrolled:
		if rest, err := p.letIn(); rest > 0 || err != nil {
			return rest, err
		}
		if err := redirect.Drain(p.ns, true); err != nil {
			return 0, err
		}
		p.state, p.leftAt, p.rules = leaving, time.Now(), ""
		p.upkeep.stop()
		p.log.Info("pod leaves the mesh")
	}
	if err := p.annotate(""); err != nil {
		return 0, err
	}
	if rest := p.agent.cfg.DrainGrace - time.Since(p.leftAt); rest > 0 {
		return rest, nil
	}
	if n, err := redirect.Redirected(p.ns); err != nil || n > 0 {
		return leaveCheck, err
	}
	if err := p.agent.zds.Delete(ctx, p.uid); err != nil {
		return 0, err
	}
	if err := redirect.Remove(p.ns); err != nil {
		return 0, err
	}
	p.release()
	p.tell(Normal, "MeshLeft", "its traffic is its own affair again")
	p.log.Info("pod left the mesh")
	return 0, nil
}

// drop is for a pod whose namespace is gone or going: there is nothing to put
// back in order there.
func (p *pod) drop(ctx context.Context) error {
	if p.state != out {
		if err := p.agent.zds.Delete(ctx, p.uid); err != nil {
			return err
		}
	}
	p.release()
	return p.annotate("")
}

func (p *pod) release() {
	p.upkeep.stop()
	p.publish(nil, false)
	p.agent.store.Drop(p.uid)
	p.ns.Close()
	p.ns, p.state, p.rules, p.ips, p.taken, p.steps = nil, out, "", nil, false, steps{}
}

// publish says what ztunnel's snapshot holds of the pod.
func (p *pod) publish(ns *netns.NS, member bool) {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	p.shared, p.member, p.announced = ns, member, nil
	if member {
		p.announced = slices.Clone(p.ips)
	}
	p.agent.pokeProbes()
}

// retire gives back the namespace at the agent's end. The pod stays a member: its
// rules, and the node's for its probes, stay for a successor.
func (p *pod) retire() {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	p.shared = nil
}

// show keeps for people how the last attempt ended, and logs what is new.
func (p *pod) show(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		p.agent.parts.Metrics.joinErrors.Inc()
	}
	p.agent.mu.Lock()
	repeated := text == p.lastErr
	if (p.state == enrolled) != (p.shown == enrolled) {
		p.agent.parts.Metrics.inMesh.Add(map[bool]float64{true: 1, false: -1}[p.state == enrolled])
	}
	p.lastErr, p.shown = text, p.state
	p.agent.mu.Unlock()
	if err != nil && !repeated {
		p.tellFailed(err)
		p.log.Warn("pod is not where it should be, will try again", "state", p.state.String(), "error", err)
	}
}

// annotate writes the pod's annotation unless it is there already.
func (p *pod) annotate(value string) error {
	if p.noteSet && p.noted == value {
		return nil
	}
	if notes := p.agent.parts.Notes; notes == nil {
		if err := p.agent.patches.write(p.uid, p.name, value); err != nil {
			return fmt.Errorf("annotate pod: %w", err)
		}
	} else if p.noteSet || p.annotation() != value {
		notes.Annotate(p.uid, p.name, value)
	}
	p.noted, p.noteSet = value, true
	return nil
}

// annotation is what the pod's source says that is written on it.
func (p *pod) annotation() string {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	return p.spec.Annotations[enroll.AnnotationRedirection]
}
