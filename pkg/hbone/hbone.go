// Package hbone is the seam between the mesh and its tunnels. A tunnel carries
// one TCP connection as an HTTP CONNECT stream inside mutual TLS, many streams
// on one connection:
//
//	ztunnel ── Opener.Open(peer, request) ──▶ Stream ══ mTLS, HTTP/2 ══▶ Incoming ── Accept ──▶ Stream ── waypoint
//
// The package holds what every carrier shares: what a CONNECT says (Request,
// Header, Response), who is at the other end (Peer, Incoming), what a tunnelled
// connection can do (Stream), and the byte Budget that bounds buffering on a
// node. Carriers live below: pkg/hbone/h2.
//
// A Stream may be used by one reader and one writer at a time, Reset and Close
// by anyone. Everything else is a plain value or safe for concurrent use.
package hbone

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

// Counters are live byte counts of a pump: Sent toward the stream, Received
// from the stream.
type Counters = relay.Counters

// ErrNoConnection is in the error of an impatient Open that got no connection in
// time: the peer was not asked for anything.
var ErrNoConnection = errors.New("no connection")

// Request is what a CONNECT asks for.
type Request struct {
	Authority string // "ip:port", "[ip]:port", or "hostname:port" across networks
	Header    Header
	// Impatient has Open fail with reason.Unresponsive within a second or two when
	// the peer's process does not answer at all, for callers that can go elsewhere.
	Impatient bool
	Timing    *Timing // where to tell how long it took; may be nil
}

// Response is the answer to a CONNECT.
type Response struct {
	Status  int    // 200 means that the tunnel is connected
	Baggage string // describes the destination workload; may be empty
}

// Stream is one tunnelled connection. Its two directions end independently.
type Stream interface {
	// Read returns io.EOF when the peer ended its direction.
	Read(p []byte) (int, error)
	// Write blocks until p has been handed to the tunnel.
	Write(p []byte) (int, error)
	// CloseWrite ends our direction; the peer reads io.EOF.
	CloseWrite() error
	// Reset ends both directions at once and tells the peer why.
	Reset(code Code)
	// Close gives the stream back: a Reset(Cancel) unless both directions have ended.
	Close() error

	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error

	// Pump moves bytes between conn and the stream until both directions have
	// ended. FIN and end of stream are passed on, each for its direction. A conn
	// that was reset ends its direction like a FIN; so does a stream that its
	// peer cancelled; any other reset ends it too and is returned as an error.
	// When ctx ends the stream is reset, conn is reset and closed, and ctx's
	// cause is returned. Otherwise conn stays the caller's to close. n may be nil.
	Pump(ctx context.Context, conn *net.TCPConn, n *Counters) error

	LocalAddr() netip.AddrPort  // of the connection that carries the tunnel
	RemoteAddr() netip.AddrPort // of the connection that carries the tunnel

	// Done is closed when both directions have ended on the wire.
	Done() <-chan struct{}

	// Leaving reports whether the connection that carries the tunnel takes no more
	// streams, most often because the peer is about to end: what merely rests on this
	// one should come again on another.
	Leaving() bool
}

// Peer names the far end of a tunnel and how we appear to it. Streams share a
// connection only when all of it is equal, the order of Expect included.
type Peer struct {
	Source  mesh.Identity   // whose certificate we present
	Expect  []mesh.Identity // any of which the peer must present; empty matches none
	Addr    netip.AddrPort  // where the peer listens, usually port 15008
	LocalIP netip.Addr      // the source pod's address
}

// Opener opens tunnelled connections.
type Opener interface {
	// Open asks peer for a connection and waits for its answer. An answer other
	// than 200 is a *StatusError. Every error carries a reason.
	Open(ctx context.Context, to Peer, req Request) (Stream, *Response, error)
}

// StatusError is an answer other than 200 to a CONNECT.
type StatusError struct {
	Status    int
	Authority string
}

// Error returns "http status: <code>" and what was asked for.
func (e *StatusError) Error() string {
	return fmt.Sprintf("open tunnel to %s: %s: %d", e.Authority, reason.TunnelStatus, e.Status)
}

// Unwrap lets reason.Of find reason.TunnelStatus.
func (e *StatusError) Unwrap() error {
	return reason.New(reason.TunnelStatus, "open tunnel", e.Authority, fmt.Errorf("%d", e.Status))
}

// Responder answers one CONNECT. Exactly one of its methods is called, once;
// a handler that returns without an answer rejects with 503.
type Responder interface {
	Accept(Response) (Stream, error) // Status is 200 whatever the argument says
	Reject(status int) error
}

// Incoming is a CONNECT that waits for its answer.
type Incoming struct {
	Peer      mesh.Identity       // the first SPIFFE URI SAN that parses; zero if none does
	PeerCerts []*x509.Certificate // as presented, leaf first
	Local     netip.AddrPort      // where the tunnel's connection was accepted
	Remote    netip.AddrPort      // where it came from
	Request   Request
	Responder
}

// Handler serves one CONNECT in a goroutine of its own. ctx ends when the
// caller gives up before an answer, and when the server is closed by force.
// The stream is closed when the handler returns.
type Handler func(ctx context.Context, in *Incoming)

// Code is why a stream ends early, an HTTP/2 error code (RFC 9113 §7).
type Code uint32

// The codes that a stream's user may meet or send.
const (
	NoError         Code = 0x0
	ProtocolError   Code = 0x1
	InternalError   Code = 0x2
	FlowControl     Code = 0x3
	StreamClosed    Code = 0x5
	RefusedStream   Code = 0x7
	Cancel          Code = 0x8
	ConnectError    Code = 0xa
	EnhanceYourCalm Code = 0xb
)

// String returns the code's name in RFC 9113.
func (c Code) String() string {
	names := [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
		"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
		"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}
	if int(c) < len(names) {
		return names[c]
	}
	return "code 0x" + strconv.FormatUint(uint64(c), 16)
}

// ResetError says that a stream was reset, by us or by the peer.
type ResetError struct {
	Code   Code
	Remote bool // the peer sent it
}

// Error names who reset the stream and why.
func (e *ResetError) Error() string {
	if e.Remote {
		return "stream reset by peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}

// Benign reports whether the reset counts as an ordinary end of the stream.
func (e *ResetError) Benign() bool { return e.Code == NoError || e.Code == Cancel }
