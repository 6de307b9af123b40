// Package listener is the waypoint's front: it takes CONNECTs from ztunnels and
// finds out whom and what each is for.
//
//	CONNECT ─▶ identity (client's certificate) ─▶ destination (authority) ─▶ protocol ─▶ HTTP | TCP
//
// The destination is chosen by the CONNECT's authority alone, the address that
// the client dialled, never by a Host header: that is written by the client and
// would choose its own policy. An address that is not served is refused.
//
// A Listener is used by the tunnel server's goroutines, one per CONNECT.
package listener

import (
	"context"
	"net"
	stdhttp "net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// Caller is who made a connection, and to what.
type Caller struct {
	Identity    mesh.Identity  // from the client's certificate; zero if it has none that parses
	Source      netip.AddrPort // of the tunnel: the client pod's address
	Destination netip.AddrPort // that the client dialled
	Host        string         // instead of an address, when the client named one
	Local       netip.AddrPort // of the tunnel: our own address
}

// Conn is a connection whose destination is known.
type Conn struct {
	Caller
	Name   string // of the config.Destination
	Stream stream.Stream
	First  []byte // what has been read from Stream already
	HTTP2  bool   // for HTTP: First begins HTTP/2
}

// Offer is a connection that has not been accepted yet.
type Offer struct {
	Caller
	Name   string
	Accept func() (stream.Stream, error)
	Reject func(status int)
}

// Handler serves connections. Each method returns when the connection has ended.
type Handler interface {
	HTTP(ctx context.Context, c *Conn)
	// TCP serves a connection that has been accepted.
	TCP(ctx context.Context, c *Conn)
	// OfferTCP connects to the endpoint before it accepts.
	OfferTCP(ctx context.Context, o *Offer)
	// Refused is told of a CONNECT that was turned down.
	Refused(c *Caller, authority string, err error)
}

// Config configures a Listener.
type Config struct {
	Store   *config.Store
	Network mesh.Network
	Handler Handler
	// DetectTimeout is how long a connection whose protocol is to be found out may
	// be silent before it is taken for one in which the server speaks first.
	DetectTimeout time.Duration // default 500 ms
}

// Listener serves CONNECTs.
type Listener struct{ cfg Config }

// New returns a listener.
func New(cfg Config) *Listener {
	if cfg.DetectTimeout == 0 {
		cfg.DetectTimeout = 500 * time.Millisecond
	}
	return &Listener{cfg: cfg}
}

// Serve is an hbone.Handler.
func (l *Listener) Serve(ctx context.Context, in *hbone.Incoming) {
	caller := Caller{Identity: in.Peer, Source: in.Remote, Local: in.Local}
	dest, err := l.destination(&caller, in.Request.Authority)
	if err != nil {
		l.cfg.Handler.Refused(&caller, in.Request.Authority, err)
		_ = in.Reject(statusOf(err))
		return
	}
	if dest.Protocol == config.TCP {
		l.cfg.Handler.OfferTCP(ctx, &Offer{
			Caller: caller,
			Name:   dest.Name,
			Accept: func() (stream.Stream, error) { return accept(in) },
			Reject: func(status int) { _ = in.Reject(status) },
		})
		return
	}
	s, err := accept(in)
	if err != nil {
		l.cfg.Handler.Refused(&caller, in.Request.Authority, err)
		return
	}
	defer s.Close()
	l.detect(ctx, &Conn{Caller: caller, Name: dest.Name, Stream: s}, dest)
}

func accept(in *hbone.Incoming) (stream.Stream, error) {
	s, err := in.Accept(hbone.Response{Status: stdhttp.StatusOK})
	if err != nil {
		return nil, err
	}
	return stream.FromTunnel(s), nil
}

func statusOf(err error) int {
	switch reason.Of(err) {
	case reason.BadRequest:
		return stdhttp.StatusBadRequest
	case reason.UnservedAddress:
		return stdhttp.StatusNotFound
	}
	return stdhttp.StatusServiceUnavailable
}

// destination finds what authority stands for and completes caller.
func (l *Listener) destination(caller *Caller, authority string) (*config.Destination, error) {
	host, portText, err := net.SplitHostPort(authority)
	if err != nil {
		return nil, reason.New(reason.BadRequest, "serve CONNECT", authority, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, reason.Newf(reason.BadRequest, "serve CONNECT", authority, "%q is not a port", portText)
	}
	snap := l.cfg.Store.Load()
	var dest *config.Destination
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		caller.Destination = netip.AddrPortFrom(ip, uint16(port))
		dest = snap.Lookup(mesh.NetAddr{Network: l.cfg.Network, Addr: ip}, uint16(port))
	} else {
		caller.Host = host
		caller.Destination = netip.AddrPortFrom(netip.Addr{}, uint16(port))
		dest = snap.LookupHost(host, uint16(port))
	}
	if dest == nil {
		return nil, reason.New(reason.UnservedAddress, "serve CONNECT", authority, nil)
	}
	return dest, nil
}

// detect hands the connection on by what the client says first.
func (l *Listener) detect(ctx context.Context, c *Conn, dest *config.Destination) {
	protocol, err := l.sniff(c, dest)
	switch {
	case err != nil: // it ended before it said anything
		l.cfg.Handler.Refused(&c.Caller, c.Destination.String(), reason.New(reason.DownstreamClosed, "read from client", c.Source.String(), err))
	case protocol == config.HTTP:
		l.cfg.Handler.HTTP(ctx, c)
	default:
		l.cfg.Handler.TCP(ctx, c)
	}
}
