package proxy

import (
	"context"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

// openDouble opens a tunnel in a tunnel (protocols §1.10). The gateway forwards
// the inner one as bytes: it ends at the far workload or its waypoint.
//
//	pod ══ outer, pooled, to the gateway: CONNECT service:port ══▶ gateway ──▶ far ztunnel
//	    └═ inner, TLS of its own: CONNECT service:port, x-forwarded-network ═════▶ ┘
//
// What the far end says about itself is all that is known of it here.
func (p *Pod) openDouble(ctx context.Context, peer hbone.Peer, r route.Route, request hbone.Request) (hbone.Stream, *mesh.Workload, mesh.Identity, error) {
	outer, _, err := p.pool.Open(ctx, peer, request)
	if err != nil {
		return nil, nil, mesh.Identity{}, err
	}
	inner := peer
	inner.Expect = r.Inner
	cfg, err := p.clientTLS(ctx, inner)
	if err != nil {
		outer.Close()
		return nil, nil, mesh.Identity{}, err
	}
	request.Header.Network = string(p.node.Settings.Network)
	request.Timing = nil
	stream, resp, who, err := p.pool.OpenOver(ctx, hbone.NetConn(outer), cfg, request)
	if err != nil {
		return nil, nil, who, err
	}
	return stream, p.node.sources.of(told{resp.Baggage, who}), who, nil
}
