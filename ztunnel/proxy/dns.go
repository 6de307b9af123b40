package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/dns"
)

// podDNS is the sockets on which a pod's programs are answered names. A nil one
// is of a pod that is not.
type podDNS struct {
	pod    *Pod
	server *dns.Server
	udp    []*dns.UDP
	tcp    []*listener
	ended  chan struct{} // closed when nothing is received any more

	once    sync.Once // opens tracker
	tracker *netns.Tracker
	lost    error // why there is no tracker
}

// listenDNS opens the pod's DNS sockets, on loopback. A namespace whose loopback has
// no IPv6 gets none there: nothing can be redirected to it.
func (p *Pod) listenDNS(ctx context.Context) error {
	if p.node.DNS == nil || !p.own.IsZero() {
		return nil
	}
	d := &podDNS{pod: p, ended: make(chan struct{})}
	for _, at := range p.node.Settings.DNSAddrs {
		err := d.listen(ctx, at)
		switch {
		case err == nil:
		case at.Addr().Is6() && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)):
		default:
			d.closeSockets()
			return err
		}
	}
	d.server = p.node.DNS.NewServer(dns.PodConfig{
		Name:     p.info.String(),
		Known:    p.known,
		Learn:    p.workload,
		Net:      podNet{p},
		Original: d.original,
	})
	p.dns = d
	return nil
}

func (d *podDNS) listen(ctx context.Context, at netip.AddrPort) error {
	p, family := d.pod, "4"
	if at.Addr().Is6() {
		family = "6"
	}
	opt := netns.ListenOptions{ReusePort: p.node.Settings.ReusePort, Mark: p.node.Settings.Mark}
	c, err := p.adoptUDP("dns/udp"+family, at), error(nil)
	if c == nil {
		if c, err = p.ns.ListenPacket(ctx, at, opt); err != nil {
			return err
		}
	}
	u, err := dns.NewUDP(c)
	if err != nil {
		c.Close()
		return err
	}
	d.udp = append(d.udp, u)
	p.keep("dns/udp"+family, c)
	l := p.adoptTCP("dns/tcp"+family, at)
	if l == nil {
		if l, err = p.ns.Listen(ctx, at, opt); err != nil {
			return err
		}
	}
	d.tcp = append(d.tcp, newListener(l))
	p.keep("dns/tcp"+family, l)
	return nil
}

// podNet opens sockets in the pod's namespace that its redirection leaves alone.
type podNet struct{ p *Pod }

func (n podNet) DialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := n.p.ns.DialPacket(ctx, to, netns.DialOptions{Mark: n.p.node.Settings.Mark})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (n podNet) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := n.p.ns.Dial(ctx, to, netns.DialOptions{Mark: n.p.node.Settings.Mark})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// original asks the kernel which name server a redirected datagram was for.
func (d *podDNS) original(local, client netip.AddrPort) (netip.AddrPort, error) {
	d.once.Do(func() { d.tracker, d.lost = d.pod.ns.NewTracker() })
	if d.tracker == nil {
		return netip.AddrPort{}, d.lost
	}
	return d.tracker.OriginalUDP(local, client)
}

// serveDNS answers until stop or close.
func (p *Pod) serveDNS(ctx context.Context) error {
	d := p.dns
	defer close(d.ended)
	var g run.Group
	for _, u := range d.udp {
		g.Add("udp", func(context.Context) error { return d.server.ServeUDP(u) })
	}
	for _, l := range d.tcp {
		g.Add("tcp", func(context.Context) error { return p.accept(l, d.serveConn) })
	}
	return g.Run(ctx)
}

func (d *podDNS) serveConn(c *net.TCPConn) {
	dialled, err := netns.OriginalDst(c)
	if err != nil {
		dialled = addrPort(c.LocalAddr())
	}
	d.server.ServeConn(c, dialled)
}

// stop leaves what arrives from now on to a successor.
func (d *podDNS) stop() {
	if d == nil {
		return
	}
	shared := d.pod.stored() && d.pod.node.Store.Shared()
	for _, u := range d.udp {
		u.Stop(shared)
	}
	for _, l := range d.tcp {
		l.stop()
	}
}

// drain waits until everything that had arrived has its answer, or ctx ends. The
// sockets close then, however long the pod's other connections go on: a successor
// that could not take them over shares their address with its own.
func (d *podDNS) drain(ctx context.Context) {
	if d == nil {
		return
	}
	select {
	case <-d.ended:
	case <-ctx.Done():
	}
	d.server.Drain(ctx)
	d.closeSockets()
}

func (d *podDNS) close() {
	if d == nil {
		return
	}
	d.closeSockets()
	d.server.Close()
	d.once.Do(func() { d.lost = net.ErrClosed })
	if d.tracker != nil {
		d.tracker.Close()
	}
}

func (d *podDNS) closeSockets() {
	if d == nil {
		return
	}
	for _, u := range d.udp {
		u.Close()
	}
	for _, l := range d.tcp {
		l.Close()
	}
}
