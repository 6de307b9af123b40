package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// MeshGoes is why every pod is outside: the mesh leaves the node.
const MeshGoes enroll.Reason = "the mesh is being removed from this node"

// Release takes every pod of the node out of the mesh, as when its label had gone:
// nothing new is redirected, and what was goes on until it ends or ctx does. Then
// the rules go in any case, because no ztunnel will be there to serve them. No pod
// joins any more afterwards.
func (a *Agent) Release(ctx context.Context) error {
	a.mu.Lock()
	a.released = true
	pods := make([]*pod, 0, len(a.pods))
	for _, p := range a.pods {
		p.poke()
		pods = append(pods, p)
	}
	a.mu.Unlock()
	a.writeEligibility()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for a.captured() > 0 && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.strip())
	}
	a.mu.Lock()
	a.gone = true
	a.mu.Unlock()
	return errors.Join(errs...)
}

// captured counts the pods that have rules still.
func (a *Agent) captured() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if p.shown != out {
			n++
		}
	}
	return n
}

// strip takes the pod's rules away, whatever is open.
func (p *pod) strip() error {
	select {
	case <-p.turn:
	case <-time.After(time.Second): // whoever has it waits for a ztunnel
		return fmt.Errorf("pod %s: busy, its rules stay", p.name)
	}
	defer p.unlock()
	if p.ns == nil {
		return nil
	}
	err := redirect.Remove(p.ns)
	p.release()
	return err
}

// cleanGrace is how long connections that are redirected may go on when the node
// is cleaned, and cleanLook how often it is looked whether they do.
const (
	cleanGrace = 5 * time.Second
	cleanLook  = 100 * time.Millisecond
)

// clean removes our rules from namespaces that have them, and returns from how
// many. It needs nobody's help: not the API server's, nor an agent's or a ztunnel's.
func clean(ctx context.Context, namespaces []*netns.NS, grace time.Duration) (n int, err error) {
	var ours []*netns.NS
	var errs []error
	seen := map[netns.ID]bool{}
	for _, ns := range namespaces {
		if seen[ns.ID()] {
			continue // it was found in more than one way
		}
		seen[ns.ID()] = true
		applied, err := redirect.Applied(ns)
		if err != nil {
			errs = append(errs, err)
		} else if applied {
			errs = append(errs, redirect.Drain(ns, true))
			ours = append(ours, ns)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	tick := time.NewTicker(cleanLook)
	defer tick.Stop()
	for inUse(ours) && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	for _, ns := range ours {
		if err := redirect.Remove(ns); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

func inUse(namespaces []*netns.NS) bool {
	for _, ns := range namespaces {
		if n, err := redirect.Redirected(ns); err == nil && n > 0 {
			return true
		}
	}
	return false
}
