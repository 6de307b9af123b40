package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// A pod's programs find a SOCKS 5 server on loopback, if one is asked for
// (UNSTABLE_ENABLE_SOCKS5). It is for tests and benchmarks: what comes in there is
// treated as if it had been captured.

// socksTime bounds the exchange before the connection to the destination.
const socksTime = 10 * time.Second

// Answers of a SOCKS server (RFC 1928 §6).
const (
	socksDone        = 0
	socksFailed      = 1
	socksRefused     = 5
	socksNoCommand   = 7
	socksNoAddrType  = 8
	socksVersion     = 5
	socksNoMethod    = 0xff
	socksConnect     = 1
	socksIPv4        = 1
	socksHost        = 3
	socksIPv6        = 4
	socksWithoutAuth = 0
)

// listenSOCKS opens the server's port.
func (p *Pod) listenSOCKS(ctx context.Context) error {
	if !p.node.Settings.SOCKS || !p.own.IsZero() {
		return nil
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), mesh.PortSOCKS)
	l, err := p.ns.Listen(ctx, at, netns.ListenOptions{ReusePort: p.node.Settings.ReusePort, Mark: p.node.Settings.Mark})
	if err != nil {
		return err
	}
	p.socksPort = newListener(l)
	return nil
}

// listeners are those that the pod has open.
func (p *Pod) listeners() []*listener {
	var all []*listener
	for _, port := range p.ports() {
		if *port.slot != nil {
			all = append(all, *port.slot)
		}
	}
	if p.socksPort != nil {
		all = append(all, p.socksPort)
	}
	return all
}

func (p *Pod) acceptSOCKS(context.Context) error {
	return p.accept(p.socksPort, p.serveSOCKS)
}

// serveSOCKS learns where a client wants to go and carries it there as serveOutbound
// does.
func (p *Pod) serveSOCKS(client *net.TCPConn) {
	client.SetDeadline(time.Now().Add(socksTime))
	dst, code, err := p.askSOCKS(client)
	if err != nil {
		answerSOCKS(client, code)
		client.Close()
		p.node.Log.Debug("SOCKS request refused", "pod", p.info, "error", err)
		return
	}
	client.SetDeadline(time.Time{})
	p.carry(&outflow{pod: p, client: client, asked: dst})
}

// askSOCKS reads a request. On an error code is the answer to give.
func (p *Pod) askSOCKS(c io.ReadWriter) (dst netip.AddrPort, code byte, err error) {
	var b [257]byte
	if _, err := io.ReadFull(c, b[:2]); err != nil || b[0] != socksVersion {
		return dst, socksFailed, errors.Join(err, errors.New("this is not SOCKS 5"))
	}
	methods := b[:b[1]]
	if _, err := io.ReadFull(c, methods); err != nil {
		return dst, socksFailed, err
	}
	method := byte(socksNoMethod)
	for _, m := range methods {
		if m == socksWithoutAuth {
			method = socksWithoutAuth
		}
	}
	if _, err := c.Write([]byte{socksVersion, method}); err != nil || method == socksNoMethod {
		return dst, socksFailed, errors.Join(err, errors.New("the client wants to log in"))
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return dst, socksFailed, err
	}
	if b[1] != socksConnect {
		return dst, socksNoCommand, errors.New("the client wants another command than CONNECT")
	}
	ip, code, err := p.socksAddress(c, b[3])
	if err != nil {
		return dst, code, err
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return dst, socksFailed, err
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[:2])), socksDone, nil
}

// socksAddress reads an address; a name is looked up.
func (p *Pod) socksAddress(c io.Reader, kind byte) (ip netip.Addr, code byte, err error) {
	var b [256]byte
	var n int
	switch kind {
	case socksIPv4:
		n = 4
	case socksIPv6:
		n = 16
	case socksHost:
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			return ip, socksFailed, err
		}
		n = int(b[0])
	default:
		return ip, socksNoAddrType, errors.New("unknown kind of address")
	}
	if _, err := io.ReadFull(c, b[:n]); err != nil {
		return ip, socksFailed, err
	}
	if kind != socksHost {
		ip, _ = netip.AddrFromSlice(b[:n])
		return ip.Unmap(), socksDone, nil
	}
	ctx, cancel := context.WithTimeout(p.ends, socksTime)
	defer cancel()
	ips, err := p.node.Resolver.LookupNetIP(ctx, "ip", string(b[:n]))
	if err == nil && len(ips) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return ip, socksFailed, reason.New(reason.NoHealthyUpstream, "resolve", string(b[:n]), err)
	}
	return ips[0].Unmap(), socksDone, nil
}

// answerSOCKS tells the client what became of its request.
func answerSOCKS(c io.Writer, code byte) error {
	_, err := c.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

// socksCode is the answer for the end of an attempt to connect.
func socksCode(err error) byte {
	switch reason.Of(err) {
	case reason.None:
		return socksDone
	case reason.ConnectRefused:
		return socksRefused
	}
	return socksFailed
}
