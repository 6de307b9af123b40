package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Resolver looks up hosts for ztunnel itself, at the node's own name servers. What
// it found it keeps for as long as the servers said.
type Resolver struct {
	forwarder *forwarder
}

// ResolverConfig configures a Resolver.
type ResolverConfig struct {
	Servers    func() []netip.AddrPort // see SystemServers
	Net        Net                     // nil = the process's own namespace
	CacheBytes int                     // default 1 MiB
}

// NewResolver returns a Resolver. It starts nothing.
func NewResolver(cfg ResolverConfig) *Resolver {
	if cfg.Net == nil {
		cfg.Net = ownNet{}
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 1 << 20
	}
	return &Resolver{newForwarder(cfg.Net, cfg.Servers, newCache(cfg.CacheBytes))}
}

// ownNet opens sockets in the process's namespace.
type ownNet struct{}

func (ownNet) DialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "udp", to.String())
}

func (ownNet) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", to.String())
}

// resolverUDP is the answer over UDP that the Resolver takes, in bytes: what passes
// every network in one piece.
const resolverUDP = 1232

// LookupNetIP returns the addresses of a host: network is "ip", "ip4" or "ip6". The
// host is a full name, whether it ends in a dot or not. A host that does not exist
// is a *net.DNSError with IsNotFound.
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	addrs, _, err := r.Lookup(ctx, network, host)
	return addrs, err
}

// Lookup is LookupNetIP and says for how long the answer holds.
func (r *Resolver) Lookup(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error) {
	types := map[string][]uint16{"ip": {dns.TypeA, dns.TypeAAAA}, "ip4": {dns.TypeA}, "ip6": {dns.TypeAAAA}}[network]
	if types == nil {
		return nil, 0, fmt.Errorf("look up %s: unknown network %q", host, network)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, maxTTL, nil
	}
	if plain(host) == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, maxTTL, nil
	}
	results := make(chan found, len(types))
	for _, t := range types {
		// Others may wait for the same answer: it does not end with this caller.
		go func() { results <- r.one(context.WithoutCancel(ctx), host, t) }()
	}
	all := found{ttl: maxTTL}
	for range types {
		select {
		case f := <-results:
			all.add(f)
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("look up %s: %w", host, context.Cause(ctx))
		}
	}
	if len(all.addrs) > 0 {
		return all.addrs, all.ttl, nil
	}
	if all.err == nil {
		all.err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return nil, 0, all.err
}

// found is what came of one query.
type found struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

func (all *found) add(f found) {
	if f.err != nil {
		all.err = f.err
		return
	}
	all.addrs = append(all.addrs, f.addrs...)
	all.ttl = min(all.ttl, f.ttl)
}

func (r *Resolver) one(ctx context.Context, host string, qtype uint16) found {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(strings.ToLower(host)), qtype)
	m.Id = 0
	m.SetEdns0(resolverUDP, false)
	raw, err := m.Pack()
	if err != nil {
		return found{err: fmt.Errorf("look up %q: %w", host, err)}
	}
	q, err := parse(raw)
	if err != nil {
		return found{err: fmt.Errorf("look up %q: %w", host, err)}
	}
	msg := r.forwarder.cached(netip.AddrPort{}, &q)
	if msg == nil {
		msg, err = r.forwarder.forward(ctx, netip.AddrPort{}, &q, false, func(time.Duration, error) {})
	}
	if err != nil {
		return found{err: &net.DNSError{Err: err.Error(), Name: host, IsTemporary: true}}
	}
	return read(msg, host, qtype)
}

// read takes the addresses out of an answer.
func read(msg []byte, host string, qtype uint16) found {
	switch rc := rcode(msg); rc {
	case dns.RcodeSuccess, dns.RcodeNameError:
	default:
		return found{err: &net.DNSError{Err: "name server says " + dns.RcodeToString[rc], Name: host, IsTemporary: true}}
	}
	f := found{ttl: maxTTL}
	for rr, err := range records(msg) {
		if err != nil {
			return found{err: &net.DNSError{Err: err.Error(), Name: host}}
		}
		if rr.section != 0 {
			break
		}
		f.ttl = min(f.ttl, time.Duration(rr.ttl)*time.Second)
		if a, ok := netip.AddrFromSlice(rr.data); ok && rr.typ == qtype && wants(qtype, a) {
			f.addrs = append(f.addrs, a)
		}
	}
	return f
}
