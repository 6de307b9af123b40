package app

import (
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
)

// A label takes running pods into the mesh, or out of it, one after another and on
// several nodes. Where mutual TLS is STRICT, a server must not refuse the plaintext
// of a client whose turn comes a moment later, or of a ztunnel that has not heard
// of the server yet. So inbound plaintext is captured last, and let go first:
//
//	label comes   what the pod opens is captured, tunnels are served ─▶ announced ─ grace ─▶ plaintext is captured too
//	label goes    plaintext is let in ─ grace ─▶ nothing new is captured ─▶ announced ─ grace ─▶ out
//
// For that moment a pod is as open as it was before, or will be after. One that was
// made in the mesh, or was in it when this agent started, is captured whole at once
// and stays so until its label goes.
type steps struct {
	outside bool      // the pod was seen outside: it joins in steps
	joined  time.Time // when it did so; zero = whole
	opened  time.Time // when plaintext was let in because the label went; zero = it was not
}

// maxSteps is for how many graces plaintext is let in at most while other pods of
// the node are still on their way in.
const maxSteps = 5

// rest returns for how long inbound plaintext is let through still. latest is when
// the node's last pod joined in steps.
func (s *steps) rest(now, latest time.Time, grace time.Duration) time.Duration {
	if s.outside {
		return grace
	}
	if s.joined.IsZero() {
		return 0
	}
	until := s.joined.Add(grace)
	if later := latest.Add(grace); later.After(until) {
		until = later
	}
	if most := s.joined.Add(maxSteps * grace); until.After(most) {
		until = most
	}
	return max(until.Sub(now), 0)
}

// capture puts the pod's rules in, those for inbound plaintext when it is time.
func (p *pod) capture() error {
	o := p.options
	whole := p.open(time.Now()) == 0
	if !whole {
		o.BypassInbound = true
	}
	if err := p.keepRules(redirect.Pod(o)); err != nil {
		return err
	}
	switch {
	case p.steps.outside:
		p.stepIn()
	case whole && !p.steps.joined.IsZero():
		p.steps = steps{}
		p.log.Info("plaintext to the pod is captured too")
	}
	return nil
}

// open says whether inbound plaintext is let through now, and for how long.
func (p *pod) open(now time.Time) time.Duration {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	return p.steps.rest(now, p.agent.enrolling, p.agent.cfg.DrainGrace)
}

// stepIn notes that the pod has joined. Whoever joins in steps keeps the others of
// the node that do open for as long as itself.
func (p *pod) stepIn() {
	p.steps = steps{joined: time.Now()}
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	p.agent.enrolling = p.steps.joined
	p.log.Info("plaintext to the pod is let through until its clients have joined", "most", maxSteps*p.agent.cfg.DrainGrace)
}

// letIn is the first step out: plaintext that comes in is not captured any more. It
// returns how long the other pods have to do the same before this one's own
// traffic leaves in plaintext. A pod whose rules an earlier agent made has none.
func (p *pod) letIn() (rest time.Duration, err error) {
	if p.rules == "" {
		return 0, nil
	}
	if p.steps.opened.IsZero() {
		o := p.options
		o.BypassInbound = true
		if err := p.keepRules(redirect.Pod(o)); err != nil {
			return 0, err
		}
		p.steps = steps{opened: time.Now()}
		p.log.Info("pod is about to leave the mesh: plaintext to it is let through")
	}
	return max(p.agent.cfg.DrainGrace-time.Since(p.steps.opened), 0), nil
}
