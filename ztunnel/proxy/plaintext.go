package proxy

import (
	"context"
	"net"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

func (p *Pod) acceptPlaintext(context.Context) error {
	return p.accept(p.plaintext, p.servePlaintext)
}

// servePlaintext carries one connection that came in without a tunnel to the
// program that it is for:
//
//	capture    which address the client meant; never a port of our own
//	authorize  may a client without identity connect (authz.Allowed)
//	connect    to the program, from the client's own address
//	relay      move bytes until both directions are done
//	record     one access-log line, one set of counters
func (p *Pod) servePlaintext(client *net.TCPConn) {
	p.tune(client)
	rec := p.begin(inbound)
	err := p.carryPlaintext(client, rec)
	if err != nil {
		abort(client)
	} else {
		client.Close()
	}
	rec.end(err)
}

func (p *Pod) carryPlaintext(client *net.TCPConn, rec *record) error {
	rec.plaintext()
	src := addrPort(client.RemoteAddr())
	rec.line.Source.Addr = src
	dst, err := netns.OriginalDst(client)
	if err != nil {
		return reason.New(reason.Internal, "capture", src.String(), err)
	}
	rec.line.Destination.Addr = dst
	switch dst.Port() {
	case mesh.PortOutbound, mesh.PortPlaintext, mesh.PortHBONE:
		return reason.New(reason.SelfCall, "deliver", dst.String(), nil)
	}
	self, err := p.workload(p.ends)
	if err != nil {
		return err
	}
	source := p.node.Mesh.WorkloadByAddr(mesh.NetAddr{Network: p.node.Settings.Network, Addr: src.Addr()})
	rec.arrived(source, self, calledService(p.node.Mesh, self, "", dst.Port()), mesh.Identity{}, dst)
	rec.opened()

	live := p.conns.track(p.ends, inbound)
	defer live.untrack()
	live.tell(src, dst, dst, "TCP")
	c := authz.Connection{Source: src.Addr(), Destination: dst, Network: p.node.Settings.Network}
	if err := p.authorize(live.ctx, self, live, c); err != nil {
		return err
	}
	rec.reach(stageOpen)
	dst = p.inside(self, dst)
	app, err := p.dial(live.ctx, dst, p.originOf(src.Addr(), dst.Addr()), reason.ConnectTimeout)
	if err != nil {
		return err
	}
	rec.reach(stageRelay)
	defer app.Close()
	return relay.Copy(live.ctx, client, app, &rec.bytes)
}
