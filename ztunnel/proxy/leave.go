package proxy

import (
	"context"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// How a pod leaves. Of its end two tell, each when it knows:
//
//	control plane: unhealthy ─▶ notice  its tunnels are told to go away: whoever still
//	                                    has one open asks anew, and so sees that there
//	                                    are better endpoints
//	node agent: deleted      ─▶ Gone    no new connections; those that are open may end
//	control plane: removed   ─▶ the rest is cut off, DrainDefault later
//
// Unhealthy is also what a pod is called that is only not ready, and that its
// neighbours may have good reason to call (a database that waits for its peers).
// So it refuses nobody: what its program refuses the client's proxy hears as 503,
// before any byte was sent, and tries another endpoint.

// notice looks at what the control plane says of the pod's health.
func (p *Pod) notice() {
	w := p.node.Mesh.WorkloadByInfo(p.info, p.node.Settings.NodeName)
	ill := w != nil && w.Status == mesh.Unhealthy
	if p.ill.Swap(ill) == ill || !ill {
		return
	}
	p.server.Retire()
}

// Gone is Drain for a pod that has left the mesh. Its connections may go on for
// as long as the pod exists: one that was taken out of the mesh lives on, one
// that was deleted ends them by itself.
func (p *Pod) Gone(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.awaitDeleted(ctx, cancel)
	p.Drain(ctx)
}

// awaitDeleted calls end a while after the pod's workload has been removed.
func (p *Pod) awaitDeleted(ctx context.Context, end func()) {
	gone := func(v workloads.View) bool { return v.WorkloadByInfo(p.info, p.node.Settings.NodeName) == nil }
	if p.node.Mesh.Wait(ctx, gone) == nil && run.Sleep(ctx, p.node.Settings.DrainDefault) == nil {
		end()
	}
}
