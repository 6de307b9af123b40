package proof

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Server is one that the mesh's pods need.
type Server struct {
	Check   Check
	Address string // "host:port"
	// Roots returns the certificates that it is trusted by, in PEM. It is asked anew
	// for every proof: the control plane makes them, later than the agent starts.
	Roots func(ctx context.Context) ([]byte, error)
}

// reach calls what the mesh needs beside its pods, from the pod's namespace and with
// ztunnel's mark, so that the rules let it pass.
func (cfg Config) reach(ctx context.Context, ns *netns.NS, s *Seen) {
	if cfg.DNS.IsValid() {
		s.DNS = &Reached{Check: DNS, Address: cfg.DNS.String(), Err: tried(ctx, func(ctx context.Context) error { return ask(ctx, ns, cfg.DNS) })}
	}
	for _, srv := range cfg.Servers {
		err := tried(ctx, func(ctx context.Context) error { return srv.handshake(ctx, ns) })
		s.Endpoints = append(s.Endpoints, Reached{Check: srv.Check, Address: srv.Address, Err: err})
	}
}

// tried does something a few times and returns the last failure.
func tried(ctx context.Context, f func(context.Context) error) string {
	var err error
	for try := range callTries {
		if try > 0 {
			select {
			case <-time.After(callPause):
			case <-ctx.Done():
				return ctx.Err().Error()
			}
		}
		attempt, cancel := context.WithTimeout(ctx, callLimit)
		err = f(attempt)
		cancel()
		if err == nil {
			return ""
		}
	}
	return err.Error()
}

// ask asks a DNS server for the API server's name. Any answer to it will do: which
// names there are is not the mesh's affair.
func ask(ctx context.Context, ns *netns.NS, server netip.AddrPort) error {
	const id = 0x4355
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("kubernetes.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	packet, err := query.Pack()
	if err != nil {
		return err
	}
	conn, err := ns.DialPacket(ctx, server, netns.DialOptions{Mark: mesh.MarkProxy})
	if err != nil {
		return err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		conn.SetDeadline(end)
	}
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	answer := make([]byte, 1500)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	var p dnsmessage.Parser
	h, err := p.Start(answer[:n])
	if err != nil || h.ID != id || !h.Response {
		return fmt.Errorf("what answers is no DNS server: %v", err)
	}
	return nil
}

// handshake opens a TLS connection and shuts it again.
func (srv Server) handshake(ctx context.Context, ns *netns.NS) error {
	host, _, err := net.SplitHostPort(srv.Address)
	if err != nil {
		return err
	}
	to, err := resolve(ctx, srv.Address)
	if err != nil {
		return err
	}
	roots, err := srv.Roots(ctx)
	if err != nil {
		return fmt.Errorf("its root certificate is not there yet: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return errors.New("what should be its root certificate is none in PEM")
	}
	conn, err := ns.Dial(ctx, to, netns.DialOptions{Mark: mesh.MarkProxy})
	if err != nil {
		return err
	}
	defer conn.Close()
	t := tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: host, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12})
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	return nil
}

// resolve looks a name up from the node, whose resolver the agent uses itself.
func resolve(ctx context.Context, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(ips) == 0 {
		return netip.AddrPort{}, errors.New("its name has no address")
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(n)), nil
}
