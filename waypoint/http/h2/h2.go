// Package h2 is the waypoint's HTTP/2 codec (RFC 9113) without TLS: both ends of
// a connection, which carries many requests at once.
//
//	Server      a client's connection ─▶ Stream, one a request: ReadRequest, WriteResponse
//	ClientConn  an endpoint's connection ─▶ Exchange, one a request: WriteRequest, ReadResponse
//
// The wire is net/http's: frames, header compression, flow control, and the limits
// that make floods of resets, pings and continuations harmless. Here its requests
// and responses are turned into the waypoint's and back, under the rules that
// package h1 has for what a target and an authority may be, so that a policy sees
// one path whatever the version. Trailers, which gRPC cannot do without, pass both
// ways; those of a request only when its head announced them.
//
// A Stream and an Exchange have one reader and one writer, which may be two
// goroutines; the deadlines, Reset and Close may be used by anyone. A Server and a
// ClientConn are safe for concurrent use.
package h2

import (
	"net"
	stdhttp "net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// Bounds of what a peer can make a connection hold, in bytes, and of how many
// requests it may have under way.
const (
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	maxStreams   = 100 // Envoy's for a connection from outside is the same
)

// A peer that answers no PING for that long is gone: an endpoint that died leaves
// a connection on which requests would wait for ever.
const (
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

func onlyHTTP2() *stdhttp.Protocols {
	p := new(stdhttp.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// conn makes a stream a net.Conn, and gives what was read of it already first.
type conn struct {
	stream.Stream
	first         []byte
	local, remote net.Addr

	once   sync.Once
	closed chan struct{}
}

func newConn(s stream.Stream, first []byte, local, remote netip.AddrPort) *conn {
	return &conn{Stream: s, first: first, local: net.TCPAddrFromAddrPort(local), remote: net.TCPAddrFromAddrPort(remote),
		closed: make(chan struct{})}
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Stream.Read(p)
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Stream.Close()
}

// take adds fields to h, whose names are in lower case, but for those to skip. Space
// around a value is no part of it (RFC 9110 §5.5): net/http lets it pass, and a policy
// that compares would not see what an endpoint sees that strips it.
func take(h *http.Header, fields stdhttp.Header, skip ...string) {
	for name, values := range fields {
		if slices.Contains(skip, name) {
			continue
		}
		for _, v := range values {
			h.AddLower([]byte(name), []byte(strings.Trim(v, " \t")))
		}
	}
}

// give adds the fields of h to another header, under names with that prefix.
func give(to stdhttp.Header, prefix string, h *http.Header) {
	for i := range h.Len() {
		name, value := h.At(i)
		key := prefix + stdhttp.CanonicalHeaderKey(string(name))
		to[key] = append(to[key], string(value))
	}
}

// headSize is the length of what a head says, before compression.
func headSize(fields stdhttp.Header) (n int) {
	for name, values := range fields {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}
