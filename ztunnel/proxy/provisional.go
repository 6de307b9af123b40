package proxy

import (
	"context"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// A pod that starts while the control plane is away is known by its name only,
// which the node agent tells. Its workload is then made up of that:
//
//	known ──────────────────────────────────────────────▶ the workload
//	unknown, control plane there ── wait, at most 5 s ──▶ the workload, or UnknownSource
//	unknown, control plane away ─┬─ certificate held ───▶ a provisional workload
//	                             └─ not held ───────────▶ NoCertificate, at once
//
// Of a provisional workload it is not known which policies select it by label.
// Whatever the answer, it must not be let in where it would be refused: it is
// judged by the policies of its namespace and of the mesh together with each of
// those that might select it (judge). Those of the root namespace select by label
// in every namespace.

// Absence says how things stand without the control plane.
type Absence interface {
	// Away returns for how long the control plane has not been there; 0 while it is.
	Away() time.Duration
	// Held reports whether the identity's certificate is held and valid.
	Held(id mesh.Identity) bool
}

// awayAfter is how long a control plane must be away before it counts. A new
// process connects within it, as a rule.
const awayAfter = time.Second

// awayCheck is how often a connection that waits looks whether it counts by now.
const awayCheck = 100 * time.Millisecond

// known returns the pod's workload as the control plane tells it, or nil.
func (p *Pod) known() *mesh.Workload {
	return p.node.Mesh.WorkloadByInfo(p.info, p.node.Settings.NodeName)
}

// away reports whether there is no control plane to wait for.
func (n *Node) away() bool { return n.Absence != nil && n.Absence.Away() >= awayAfter }

// workload returns the pod's own workload, waiting for it if it has not come yet.
func (p *Pod) workload(ctx context.Context) (*mesh.Workload, error) {
	if w := p.known(); w != nil {
		return w, nil
	}
	late := time.NewTimer(learnTimeout)
	defer late.Stop()
	look := time.NewTicker(awayCheck)
	defer look.Stop()
	for {
		changed := p.node.Mesh.Changed()
		if w := p.known(); w != nil {
			return w, nil
		}
		if p.own.IsZero() && p.node.away() {
			return p.provisional()
		}
		select {
		case <-changed:
		case <-look.C:
		case <-late.C:
			return nil, p.unknown(reason.UnknownSource, "the control plane has not told it")
		case <-ctx.Done():
			return nil, p.unknown(reason.UnknownSource, context.Cause(ctx).Error())
		}
	}
}

func (p *Pod) unknown(why reason.Reason, text string) error {
	return reason.Newf(why, "serve", "", "%s.%s (%s): %s", p.info.ServiceAccount, p.info.Namespace, p.info.Name, text)
}

// provisional makes up the pod's workload, and makes it once: it is compared by
// address.
func (p *Pod) provisional() (*mesh.Workload, error) {
	w := p.standIn.Load()
	if w == nil {
		w = &mesh.Workload{
			UID:  mesh.UID(string(p.node.Settings.Cluster) + "//Pod/" + p.info.Namespace + "/" + p.info.Name),
			Name: p.info.Name, Namespace: p.info.Namespace, ServiceAccount: p.info.ServiceAccount,
			WorkloadName: p.info.Name, WorkloadType: mesh.Pod, CanonicalName: p.info.Name, CanonicalRevision: "latest",
			TrustDomain: p.node.Settings.TrustDomain, Network: p.node.Settings.Network, Cluster: p.node.Settings.Cluster,
			Node: p.node.Settings.NodeName, Protocol: mesh.HBONE, Addresses: p.addresses(),
		}
	}
	if !p.node.Absence.Held(w.Identity()) {
		return nil, p.unknown(reason.NoCertificate, "the control plane is away, and this node holds no certificate of "+w.Identity().String())
	}
	if p.standIn.CompareAndSwap(nil, w) {
		p.node.Log.Warn("the control plane is away: pod served by its name only", "pod", p.info, "identity", w.Identity())
		return w, nil
	}
	return p.standIn.Load(), nil
}

// addresses are those that the pod's interfaces have.
func (p *Pod) addresses() []netip.Addr {
	list, err := p.ns.Addresses()
	if err != nil {
		p.node.Log.Warn("addresses of a pod not found", "pod", p.info, "error", err)
	}
	return list
}

// judge decides about a connection to a workload of which it is not known which of
// its namespace's policies select it: it is let in only if it would be whichever
// do. More policies that deny can only refuse more. Of those that allow, any one
// may be the only one, unless one that certainly applies lets the connection in.
func (p *Pod) judge(self *mesh.Workload, c authz.Connection) authz.Verdict {
	general, missing := p.node.Mesh.PoliciesFor(self)
	verdict := authz.Allowed(general, missing, c)
	for _, perhaps := range p.perhaps(self) {
		if !verdict.Allow {
			break
		}
		verdict = authz.Allowed(append(general[:len(general):len(general)], perhaps), missing, c)
	}
	return verdict
}

// perhaps returns the policies of which it is not known whether they select self.
func (p *Pod) perhaps(self *mesh.Workload) []*mesh.Policy {
	list := p.node.Mesh.PoliciesIn(self.Namespace)
	if root := p.node.Settings.RootNamespace; root != self.Namespace {
		list = append(list, p.node.Mesh.PoliciesIn(root)...)
	}
	return list
}
