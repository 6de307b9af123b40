// Package proxy carries the connections of the meshed pods of one node.
//
//	              pod's network namespace
//	┌─────────────────────────────────────────────────────┐
//	│ program ──▶ 15001 outbound ──▶ tunnel or plain TCP ──▶ network
//	│ program ◀── 15006 plaintext ◀── plain TCP        ◀──── network
//	│ program ◀── 15008 inbound   ◀── tunnel           ◀──── network
//	└─────────────────────────────────────────────────────┘
//
// outbound.go, inbound.go and plaintext.go each read in the order in which a
// connection passes through; where it goes is decided in package route and who
// may come in by package authz. conns.go keeps the live connections and ends
// those that a later policy denies; record.go writes what became of each, and
// flight.go remembers those that failed. dns.go answers the pod's programs names.
// sockets.go leaves the listening sockets to a successor, and leave.go tells how a
// pod goes.
//
// Every socket is made in the pod's namespace and carries the mesh's mark, so
// the redirection there leaves it alone. A Node and its Pods are safe for
// concurrent use.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/ztunnel/dns"
)

const (
	// connectTimeout bounds the TCP handshake with a peer or an application.
	connectTimeout = 10 * time.Second
	// learnTimeout is how long a connection waits for what the control plane has
	// not sent yet: its own pod's workload, a policy that selects it.
	learnTimeout = 5 * time.Second
)

// Mesh is what the proxies know of the mesh. *workloads.Store is one.
type Mesh interface {
	workloads.View
	// Wait blocks until cond holds, trying again at every change.
	Wait(ctx context.Context, cond func(workloads.View) bool) error
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
	// PoliciesIn returns the policies of a namespace that select by labels.
	PoliciesIn(namespace string) []*mesh.Policy
}

// Resolver finds the addresses of a hostname. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Settings are the numbers and switches of a node's proxies.
type Settings struct {
	NodeName    string // only workloads of this node are local; "" = of any
	Network     mesh.Network
	Cluster     mesh.Cluster
	TrustDomain string // of a pod that the control plane has not told
	// RootNamespace is where policies for the whole mesh are: those there that select
	// by labels select in every namespace.
	RootNamespace string
	Mark          uint32           // SO_MARK of every socket
	ReusePort     bool             // a successor may listen on the same ports
	IPv6          bool             // false: listen on IPv4 only
	OrigSrc       bool             // applications see the client's address
	OrigSrcMust   bool             // and a namespace where that is impossible is an error
	AppLoopback   bool             // PROXY application tunnels are reached on loopback
	Baggage       bool             // answer a CONNECT with baggage
	DNSAddrs      []netip.AddrPort // on loopback; where DNS is answered if Node.DNS is set
	SOCKS         bool             // a SOCKS 5 server on loopback, for tests
	LogPolicy     bool             // log policy decisions at info level
	KeepAlive     net.KeepAliveConfig
	UserTimeout   time.Duration // TCP_USER_TIMEOUT of application sockets; 0 = the kernel's
	MaxStreams    int           // per tunnel connection that we open
	PoolIdle      time.Duration
	HTTP2         h2.Settings
	DrainDefault  time.Duration // how long connections of a pod that left may go on
}

// Node is what the pods of a node share. Its fields are set before the first use
// and not changed afterwards.
type Node struct {
	Settings Settings
	Mesh     Mesh
	Certs    certs.Source
	TLS      certs.Profile
	Metrics  *metrics.TCP
	Observed *Metrics // nil = not counted; NewMetrics sets it
	Access   *accesslog.Logger
	Budget   *hbone.Budget
	Resolver Resolver
	DNS      *dns.Node            // answers the pods' DNS; nil = nobody does
	Lookups  *metrics.OnDemandDNS // of Resolver; nil counts none
	Demand   *discovery.Demand    // nil where the control plane tells everything
	Store    handover.Stores      // keeps the pods' sockets for a successor; may be empty
	Absence  Absence              // nil where there is no control plane
	Log      *slog.Logger

	sources  sources
	abuse    abuse
	retries  retries
	suspects suspects
	flights  flights

	mu   sync.Mutex
	pods map[*Pod]struct{}
}

// Pod is the proxy of one pod.
type Pod struct {
	node *Node
	uid  mesh.PodUID
	info mesh.PodInfo
	ns   *netns.NS
	own  mesh.Identity // of ztunnel itself; zero for the node's pods

	outbound, plaintext, inbound *listener
	dns                          *podDNS // nil = names are not answered
	socks                        sockets
	origSrc                      bool        // the namespace lets us bind foreign addresses
	ill                          atomic.Bool // the control plane calls the pod unhealthy
	loop6                        bool        // its loopback has IPv6
	socksPort                    *listener   // nil unless asked for

	pool   *h2.Pool
	server *h2.Server
	conns  conns

	ends    context.Context // when the pod's connections are cut off
	cut     context.CancelCauseFunc
	flows   sync.WaitGroup // connections of outbound and plaintext
	telling atomic.Pointer[baggage]
	standIn atomic.Pointer[mesh.Workload] // the workload while nobody tells it
	once    sync.Once
}

// NewPod returns the proxy of a pod whose namespace it takes over. It does
// nothing before Listen.
func (n *Node) NewPod(uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) *Pod {
	p := &Pod{node: n, uid: uid, info: info, ns: ns}
	p.ends, p.cut = context.WithCancelCause(context.Background())
	s := n.Settings
	s.HTTP2.QueueDelay = n.Observed.queued
	p.pool = h2.NewPool(h2.PoolConfig{
		Dial:           p.dialTunnel,
		TLS:            p.clientTLS,
		Recheck:        n.recheck(certs.Outgoing),
		MaxStreams:     s.MaxStreams,
		IdleTimeout:    s.PoolIdle,
		ConnectTimeout: connectTimeout,
		Settings:       s.HTTP2,
		Budget:         n.Budget,
		Log:            n.Log,
		ConnError:      n.Observed.dialFailed,
	})
	p.server = h2.NewServer(h2.ServerConfig{
		TLS:       p.serverTLS,
		Recheck:   n.recheck(certs.Incoming),
		Handler:   p.serveInbound,
		Settings:  s.HTTP2,
		Budget:    n.Budget,
		Log:       n.Log,
		ConnError: p.refusedTunnel,
		Gate:      n.abuse.handshakes(),
		Abused:    p.abused,
	})
	return p
}

// NewOwn returns the proxy of ztunnel's own pod, in a namespace that is nil for the
// process's. It takes tunnels only, so that whoever scrapes metrics through the
// mesh reaches ours also where plaintext is refused; programs here are not
// captured and do not see the client's address. The control plane must know the
// pod before anybody gets in.
func (n *Node) NewOwn(info mesh.PodInfo, id mesh.Identity, ns *netns.NS) *Pod {
	p := n.NewPod("", info, ns)
	p.own = id
	return p
}

// ports are those that the pod listens on.
func (p *Pod) ports() []port {
	tunnels := port{&p.inbound, mesh.PortHBONE}
	if !p.own.IsZero() {
		return []port{tunnels}
	}
	return []port{{&p.outbound, mesh.PortOutbound}, {&p.plaintext, mesh.PortPlaintext}, tunnels}
}

type port struct {
	slot   **listener
	number uint16
}

// Listen opens the pod's ports in its namespace. When one cannot be opened none
// stays open.
func (p *Pod) Listen(ctx context.Context) error {
	p.origSrc = p.node.Settings.OrigSrc && p.own.IsZero()
	p.loop6 = hasLoopback6(p.ns)
	err := p.listenAll(ctx)
	if err != nil && p.origSrc && !p.node.Settings.OrigSrcMust && errors.Is(err, unix.EPERM) {
		p.origSrc = false
		err = p.listenAll(ctx)
	}
	return err
}

func (p *Pod) listenAll(ctx context.Context) (err error) {
	p.takeSockets()
	defer p.socks.putBack()
	for _, l := range p.ports() {
		if *l.slot, err = p.listen(ctx, l.number); err != nil {
			p.closeListeners()
			return err
		}
	}
	if err := errors.Join(p.listenDNS(ctx), p.listenSOCKS(ctx)); err != nil {
		p.closeListeners()
		return err
	}
	p.Deposit()
	return nil
}

func (p *Pod) listen(ctx context.Context, port uint16) (*listener, error) {
	any := netip.IPv6Unspecified()
	if !p.node.Settings.IPv6 {
		any = netip.IPv4Unspecified()
	}
	at, name := netip.AddrPortFrom(any, port), "tcp/"+strconv.Itoa(int(port))
	l := p.adoptTCP(name, at)
	if l == nil {
		var err error
		if l, err = p.ns.Listen(ctx, at, netns.ListenOptions{
			ReusePort:   p.node.Settings.ReusePort,
			Mark:        p.node.Settings.Mark,
			Transparent: p.origSrc,
		}); err != nil {
			return nil, err
		}
	}
	p.keep(name, l)
	return newListener(l), nil
}

// Run serves the pod until Drain has ended or ctx ends, which cuts every
// connection off. Listen must have succeeded.
func (p *Pod) Run(ctx context.Context) error {
	p.node.add(p)
	defer p.node.remove(p)
	stop := context.AfterFunc(ctx, p.Close)
	defer stop()

	var g run.Group
	if p.own.IsZero() {
		g.Add("outbound", p.acceptOutbound)
		g.Add("plaintext", p.acceptPlaintext)
	}
	if p.dns != nil {
		g.Add("dns", p.serveDNS)
	}
	if p.socksPort != nil {
		g.Add("socks", p.acceptSOCKS)
	}
	g.Add("inbound", p.acceptInbound)
	g.Add("pool", p.pool.Run)
	err := g.Run(p.ends)
	p.Close()
	return err
}

// Drain stops accepting, after everything that the kernel has accepted already,
// and waits until the pod's connections have ended or ctx has, which cuts off
// the rest. Run returns then.
func (p *Pod) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.Close)
	defer stop()
	p.stopAccepting(ctx)
	var names sync.WaitGroup
	names.Go(func() { p.dns.drain(ctx) })
	p.server.Drain(ctx)
	names.Wait() // first: until then DNS may accept, and so begin flows
	p.flows.Wait()
	p.pool.Drain(ctx)
	p.Close()
}

// Close cuts every connection off at once. It may be called again.
func (p *Pod) Close() {
	p.cut(reason.New(reason.Draining, "serve", p.info.String(), nil))
	p.once.Do(func() {
		p.closeListeners()
		p.dns.close()
		p.server.Close()
		p.pool.Close()
		p.ns.Close()
	})
}

// stopAccepting returns when every connection that the kernel had accepted is
// being served, or is a successor's: who shares the socket accepts from the same
// queue. Where no successor does, the socket must not stay open without us.
func (p *Pod) stopAccepting(ctx context.Context) {
	p.dns.stop()
	if p.stored() {
		p.node.Store.Release(p.key())
	}
	for _, l := range p.listeners() {
		l.stop()
	}
	for _, l := range p.listeners() {
		l.wait(ctx)
	}
}

func (p *Pod) closeListeners() {
	for _, l := range p.listeners() {
		l.Close()
	}
}

// Open returns how many connections are open.
func (p *Pod) Open() int {
	p.conns.mu.Lock()
	defer p.conns.mu.Unlock()
	return len(p.conns.live)
}

// Info returns the pod's name.
func (p *Pod) Info() mesh.PodInfo { return p.info }

func (n *Node) add(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods == nil {
		n.pods = make(map[*Pod]struct{})
	}
	n.pods[p] = struct{}{}
}

func (n *Node) remove(p *Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, p)
}

func (n *Node) running() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	pods := make([]*Pod, 0, len(n.pods))
	for p := range n.pods {
		pods = append(pods, p)
	}
	return pods
}

func (p *Pod) serverTLS(ctx context.Context) (*tls.Config, error) {
	w, err := p.workload(ctx)
	if err != nil {
		return nil, err
	}
	id := w.Identity()
	if !p.own.IsZero() {
		id = p.own
	}
	return p.node.TLS.Server(ctx, p.node.Certs, id, certs.ServerOptions{})
}

func (p *Pod) clientTLS(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
	return p.node.TLS.Client(ctx, p.node.Certs, to.Source, to.Expect)
}

func (p *Pod) dialTunnel(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	return p.dial(ctx, to, netip.Addr{}, reason.HBONETimeout)
}

// dial connects from inside the pod's namespace, from source if that is valid.
// timeout is the reason for a handshake that nobody answered.
func (p *Pod) dial(ctx context.Context, to netip.AddrPort, source netip.Addr, timeout reason.Reason) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s := p.node.Settings
	c, err := p.ns.Dial(ctx, to, netns.DialOptions{Mark: s.Mark, Source: source, KeepAlive: s.KeepAlive})
	if err == nil {
		if !s.KeepAlive.Enable {
			c.SetKeepAlive(false)
		}
		p.setUserTimeout(c)
		return c, nil
	}
	why := reason.ConnectFailed
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		why = reason.ConnectRefused
	case exhausted(err):
		why = reason.Overloaded
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		why = timeout
	}
	return nil, reason.New(why, "connect", to.String(), err)
}

// tune sets the options of an accepted connection.
func (p *Pod) tune(c *net.TCPConn) {
	c.SetKeepAliveConfig(p.node.Settings.KeepAlive)
	p.setUserTimeout(c)
}

func (p *Pod) setUserTimeout(c *net.TCPConn) {
	s := p.node.Settings
	if s.UserTimeout <= 0 {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(s.UserTimeout.Milliseconds()))
		})
	}
}

// abort closes c with a reset, which its program sees as it would have seen the
// failure to connect.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// baggage is a workload's description, kept for as long as the workload is the same.
type baggage struct {
	of   *mesh.Workload
	text string
}

func (p *Pod) baggage(w *mesh.Workload) string {
	if b := p.telling.Load(); b != nil && b.of == w {
		return b.text
	}
	b := &baggage{w, hbone.FormatBaggage(w)}
	p.telling.Store(b)
	return b.text
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
