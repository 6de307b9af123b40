package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// settle is the shortest time between two re-checks, so that a burst of changes
// costs one.
const settle = 5 * time.Millisecond

type direction bool

const (
	inbound  direction = false
	outbound direction = true
)

// conns are the live connections of one pod.
//
// A connection is tracked before it is authorized, and a change is published
// before it is re-checked. So of a change that comes just then either the
// authorization or the re-check sees both, the connection and the change.
type conns struct {
	mu   sync.Mutex
	live map[*live]struct{}

	checked struct { // what the tracked connections were last checked against
		policies []*mesh.Policy
		missing  []mesh.PolicyName
		overdue  bool // missing policies count as denying
	}
	absent time.Time // since when a policy has been missing; zero = none is
}

// live is one connection. ctx ends, with the reason as its cause, when it must.
type live struct {
	of  *conns
	dir direction
	ctx context.Context
	end context.CancelCauseFunc

	// Under of.mu.
	authorized            bool
	as                    authz.Connection
	src, original, actual netip.AddrPort
	protocol              string
}

// track adds a connection whose context is part of parent.
func (c *conns) track(parent context.Context, dir direction) *live {
	l := &live{of: c, dir: dir}
	l.ctx, l.end = context.WithCancelCause(parent)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		c.live = make(map[*live]struct{})
	}
	c.live[l] = struct{}{}
	return l
}

func (l *live) untrack() {
	l.of.mu.Lock()
	delete(l.of.live, l)
	l.of.mu.Unlock()
	l.end(nil)
}

// tell records the ends of the connection, for people.
func (l *live) tell(src, original, actual netip.AddrPort, protocol string) {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.src, l.original, l.actual, l.protocol = src, original, actual, protocol
}

// err returns why the connection must end, nil while it need not.
func (l *live) err() error {
	if l.ctx.Err() == nil {
		return nil
	}
	return context.Cause(l.ctx)
}

// authorize decides whether the pod's policies let a connection in. A policy that
// is named and has not come yet is waited for, and denies when it does not come.
// From here on the connection is checked again at every change.
func (p *Pod) authorize(ctx context.Context, self *mesh.Workload, l *live, c authz.Connection) error {
	l.of.mu.Lock()
	l.authorized, l.as = true, c
	l.of.mu.Unlock()

	v := p.evaluate(self, c)
	if v.Reason == reason.DeniedPolicyAbsent {
		v = p.awaitPolicies(ctx, c)
	}
	p.logVerdict(v, c)
	return v.Err()
}

func (p *Pod) evaluate(self *mesh.Workload, c authz.Connection) authz.Verdict {
	if self == p.standIn.Load() {
		return p.judge(self, c)
	}
	policies, missing := p.node.Mesh.PoliciesFor(self)
	return authz.Allowed(policies, missing, c)
}

// awaitPolicies evaluates again and again until no policy is missing, or the one
// that denies is there, or the time is over.
func (p *Pod) awaitPolicies(ctx context.Context, c authz.Connection) (verdict authz.Verdict) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	verdict = authz.Verdict{Reason: reason.UnknownSource}
	p.node.Mesh.Wait(ctx, func(v workloads.View) bool {
		if w := v.WorkloadByInfo(p.info, p.node.Settings.NodeName); w != nil {
			verdict = p.evaluate(w, c)
		}
		return verdict.Reason != reason.DeniedPolicyAbsent
	})
	return verdict
}

func (p *Pod) logVerdict(v authz.Verdict, c authz.Connection) {
	p.node.Observed.matchedDry(v.DryRun)
	log := p.node.Log.Debug
	if p.node.Settings.LogPolicy {
		log = p.node.Log.Info
	}
	for _, name := range v.DryRun {
		log("dry-run policy matches", "policy", name, "src.addr", c.Source, "src.identity", c.Identity, "dst.addr", c.Destination)
	}
	if !v.Allow {
		log("policy denies", "policy", v.Policy, "reason", v.Reason, "src.addr", c.Source, "src.identity", c.Identity, "dst.addr", c.Destination)
	}
}

// Recheck ends connections that a change of policies or workloads denies. It
// runs until ctx ends.
func (n *Node) Recheck(ctx context.Context) error {
	for {
		changed := n.Mesh.Changed()
		wait := learnTimeout
		for _, p := range n.running() {
			p.notice()
			if again := p.recheck(time.Now()); again > 0 {
				wait = min(wait, again)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		if run.Sleep(ctx, settle) != nil {
			return nil
		}
	}
}

// recheck compares the pod's connections with its present policies, if these are
// others than at the last time. It returns when to come back though nothing
// changes, 0 for never.
func (p *Pod) recheck(now time.Time) time.Duration {
	self := p.node.Mesh.WorkloadByInfo(p.info, p.node.Settings.NodeName)
	judged := self == nil
	if judged {
		if self = p.standIn.Load(); self == nil {
			return 0 // its connections end when the pod's do
		}
	}
	policies, missing := p.node.Mesh.PoliciesFor(self)
	if judged {
		policies = append(slices.Clip(policies), p.perhaps(self)...)
	}

	c := &p.conns
	c.mu.Lock()
	defer c.mu.Unlock()
	var again time.Duration
	overdue := false
	if len(missing) == 0 {
		c.absent = time.Time{}
	} else {
		if c.absent.IsZero() {
			c.absent = now
		}
		again = c.absent.Add(learnTimeout).Sub(now)
		overdue = again <= 0
	}
	last := &c.checked
	if last.overdue == overdue && slices.Equal(last.policies, policies) && slices.Equal(last.missing, missing) {
		return again
	}
	last.overdue, last.policies, last.missing = overdue, slices.Clone(policies), slices.Clone(missing)
	if !overdue {
		missing = nil
	}
	c.endDeniedLocked(func(as authz.Connection) authz.Verdict {
		if judged {
			return p.judge(self, as)
		}
		return authz.Allowed(policies, missing, as)
	})
	return again
}

func (c *conns) endDeniedLocked(judge func(authz.Connection) authz.Verdict) {
	for l := range c.live {
		if !l.authorized || l.ctx.Err() != nil {
			continue
		}
		if v := judge(l.as); !v.Allow {
			l.end(reason.New(reason.PolicyChanged, "relay", "", v.Err()))
		}
	}
}

// Connection is a live connection, as istioctl reads it from a config dump.
type Connection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// Connections lists the pod's live connections.
type Connections struct {
	Inbound  []Connection `json:"inbound"`
	Outbound []Connection `json:"outbound"`
}

// Connections returns the connections that are open now.
func (p *Pod) Connections() Connections {
	out := Connections{Inbound: []Connection{}, Outbound: []Connection{}}
	p.conns.mu.Lock()
	defer p.conns.mu.Unlock()
	for l := range p.conns.live {
		if !l.src.IsValid() {
			continue
		}
		c := Connection{l.src.String(), l.original.String(), l.actual.String(), l.protocol}
		if l.dir == inbound {
			out.Inbound = append(out.Inbound, c)
		} else {
			out.Outbound = append(out.Outbound, c)
		}
	}
	return out
}
