package proof

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Config says what is proven, and how.
type Config struct {
	ConfDir   string // the runtime's CNI configuration, as we see it
	BinDir    string // the runtime's CNI programs, as the node sees them
	StateDir  string // for what has to be remembered from ADD to DEL
	Proc      string // the node's procfs
	Namespace string // of the pod, as the plugins are told
	// Source returns the address from which the node calls a pod of its own.
	Source func(pod netip.Addr) (netip.Addr, error)
	// Announced reports whether our plugin has told the agent of the pod since it
	// was asked last.
	Announced func() bool
	// Rewrite has the node rewrite the source of probes to those pods, instead of those
	// before. nil: nodes rewrite nothing.
	Rewrite func(pods []netip.Addr) error
	// Ztunnels is how many ztunnels are connected to the agent.
	Ztunnels func() int
	DNS      netip.AddrPort // a server of the cluster; invalid = not tried
	Servers  []Server       // that a pod must be able to reach
	Log      *slog.Logger
}

// Ports of the pod's program.
const (
	probePort = 8080 // declared for a probe
	otherPort = 8081
)

// Time limits, and the wait between attempts: a network may take a moment to be
// there everywhere.
const (
	chainLimit = 20 * time.Second
	callLimit  = 2 * time.Second
	callPause  = 200 * time.Millisecond
	callTries  = 5
)

// Prove tries the node and returns what was seen. An error is that it could not be
// tried at all.
func Prove(ctx context.Context, cfg Config) (Seen, error) {
	s := Seen{Ztunnels: cfg.Ztunnels()}
	if err := redirect.SelfTest(cfg.Proc); err != nil {
		s.Kernel = err.Error()
	}
	ns, err := netns.NewUnnamed()
	if err != nil {
		return s, fmt.Errorf("proof: %w", err)
	}
	defer ns.Close()
	c, err := newChain(cfg, ns)
	if err != nil {
		s.Chain = err.Error()
		return s, nil
	}
	s.Conf = c.file
	c.takeDown(ctx, cfg.Log) // what an earlier proof may have left
	defer c.takeDown(ctx, cfg.Log)
	cfg.Announced()
	adding, cancel := context.WithTimeout(ctx, chainLimit)
	defer cancel()
	if s.IPs, err = c.add(adding); err != nil {
		s.Chain = err.Error()
		return s, nil
	}
	s.Announced = cfg.Announced()
	if len(s.IPs) == 0 {
		return s, nil
	}
	return s, cfg.try(ctx, ns, &s)
}

func (c *chain) takeDown(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chainLimit)
	defer cancel()
	if err := c.del(ctx); err != nil {
		log.Warn("the network of the proof's pod was not taken down", "error", err)
	}
}

// try redirects the pod and calls it, and calls from it.
func (cfg Config) try(ctx context.Context, ns *netns.NS, s *Seen) error {
	o := redirect.Options{IPv6: true, Proc: cfg.Proc, ProbeSNAT: cfg.Rewrite != nil}
	for _, ip := range s.IPs {
		in := Inbound{}
		if src, err := cfg.Source(ip); err != nil {
			in.Probe.Err = err.Error()
		} else {
			in.Source = src
			o.Probes = append(o.Probes, redirect.Probe{Source: src, Ports: []uint16{probePort}})
		}
		s.Inbound = append(s.Inbound, in)
	}
	if err := redirect.Apply(ns, redirect.Pod(o)); err != nil {
		s.Kernel = err.Error()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pod standIn
	defer pod.wait()
	defer cancel()
	for port, name := range map[uint16]string{probePort: Program, otherPort: Program, mesh.PortOutbound: "", mesh.PortPlaintext: "", mesh.PortHBONE: ""} {
		if err := pod.listen(ctx, ns, port, name); err != nil {
			return fmt.Errorf("proof: %w", err)
		}
	}
	cfg.probe(ctx, s)
	for i, ip := range s.IPs {
		in := &s.Inbound[i]
		if !in.Source.IsValid() {
			continue
		}
		in.Capture = call(ctx, nil, netip.AddrPortFrom(ip, otherPort))
		in.Tunnel = call(ctx, nil, netip.AddrPortFrom(ip, mesh.PortHBONE))
	}
	s.Outbound = call(ctx, ns, cfg.anywhere(s.IPs[0]))
	cfg.reach(ctx, ns, s)
	return nil
}

// probe calls the pod as the kubelet does. Only this is rewritten: what else the node
// calls would be, too.
func (cfg Config) probe(ctx context.Context, s *Seen) {
	if cfg.Rewrite != nil {
		err := cfg.Rewrite(s.IPs)
		defer func() {
			if err := cfg.Rewrite(nil); err != nil {
				cfg.Log.Warn("probes to the proof's pod are still rewritten", "error", err)
			}
		}()
		if err != nil {
			cfg.Log.Warn("probes to the proof's pod are not rewritten", "error", err)
		}
	}
	for i, ip := range s.IPs {
		if in := &s.Inbound[i]; in.Source.IsValid() {
			in.Probe = call(ctx, nil, netip.AddrPortFrom(ip, probePort))
		}
	}
}

// anywhere is an address outside of the pod, that nobody needs to have: the
// connection is captured before it leaves.
func (cfg Config) anywhere(ip netip.Addr) netip.AddrPort {
	switch {
	case cfg.DNS.IsValid() && cfg.DNS.Addr().Is4() == ip.Is4():
		return netip.AddrPortFrom(cfg.DNS.Addr(), 80)
	case ip.Is4():
		return netip.AddrPortFrom(ip.Next(), 80)
	}
	return netip.MustParseAddrPort("[2001:db8::1]:80") // RFC 3849
}

// call connects, from ns or the node, and returns who answered. It is tried a few
// times.
func call(ctx context.Context, from *netns.NS, to netip.AddrPort) (a Answer) {
	for try := range callTries {
		if a = callOnce(ctx, from, to); a.Err == "" {
			return a
		}
		if try < callTries-1 {
			select {
			case <-time.After(callPause):
			case <-ctx.Done():
				return a
			}
		}
	}
	return a
}

func callOnce(ctx context.Context, from *netns.NS, to netip.AddrPort) Answer {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	conn, err := from.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		return Answer{Err: err.Error()}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callLimit))
	said, err := io.ReadAll(io.LimitReader(conn, 256))
	if err != nil {
		return Answer{Err: err.Error()}
	}
	by, seen, ok := strings.Cut(string(said), " ")
	peer, err := netip.ParseAddr(seen)
	if !ok || err != nil {
		return Answer{Err: fmt.Sprintf("somebody else answers there: %.40q", said)}
	}
	return Answer{By: by, From: peer}
}

// standIn stands where the pod's program and its ztunnel's listeners would be: who
// connects is told who has answered, and from where it came.
type standIn struct{ ends []chan struct{} }

func (p *standIn) listen(ctx context.Context, ns *netns.NS, port uint16, name string) error {
	opt := netns.ListenOptions{Mark: mesh.MarkProxy, Transparent: true}
	if name != "" {
		opt = netns.ListenOptions{}
	} else {
		name = fmt.Sprint(port)
	}
	l, err := ns.Listen(ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port), opt)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	end := make(chan struct{})
	p.ends = append(p.ends, end)
	go func() {
		defer close(end)
		defer stop()
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					l.Close()
				}
				return
			}
			peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(conn, "%s %s", name, peer) // a few bytes: they fit into any buffer
			conn.Close()
		}
	}()
	return nil
}

func (p *standIn) wait() {
	for _, end := range p.ends {
		<-end
	}
}
