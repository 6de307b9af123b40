package app

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// lookAgain is how often it is made sure that the node's rules for probes are there
// still: others write rules in its namespace, too.
const lookAgain = 10 * time.Second

// runProbes keeps the node's rules that rewrite the source of probes to the pods of
// the mesh, until ctx ends. They stay then: a successor finds them.
func (a *Agent) runProbes(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if err := a.rewriteProbes(); err != nil {
			a.log.Warn("probes are not rewritten, will try again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.probes:
		}
	}
}

// rewriteProbes makes the node's rules what they should be now.
func (a *Agent) rewriteProbes() error {
	a.rewriting.Lock()
	defer a.rewriting.Unlock()
	ns, err := a.node()
	if err != nil {
		return err
	}
	defer ns.Close()
	want := a.probed()
	there, err := redirect.NodeApplied(ns)
	if err != nil || there && slices.Equal(want, a.rewritten) || !there && len(want) == 0 {
		return err
	}
	if err := redirect.ApplyNode(ns, redirect.Node(want)); err != nil {
		return err
	}
	a.rewritten = want
	return nil
}

// rewriteFor has probes rewritten of these addresses, too: those of the pod with
// which the node is proven.
func (a *Agent) rewriteFor(proven []netip.Addr) error {
	a.mu.Lock()
	a.proven = proven
	a.mu.Unlock()
	return a.rewriteProbes()
}

// probed are the addresses of the pods that are captured, in order.
func (a *Agent) probed() (all []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all = slices.Clone(a.proven)
	for _, p := range a.pods {
		if p.member {
			all = append(append(all, p.spec.IPs...), p.announced...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// pokeProbes has the rules looked at again.
func (a *Agent) pokeProbes() {
	select {
	case a.probes <- struct{}{}:
	default:
	}
}

// forgetProbes removes the node's rules for probes, whoever made them.
func forgetProbes() error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	there, err := redirect.NodeApplied(ns)
	if err != nil || !there {
		return err
	}
	return redirect.RemoveNode(ns)
}
