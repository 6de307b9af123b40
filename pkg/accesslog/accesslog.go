// Package accesslog writes one line per connection or request.
package accesslog

import (
	"io"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Direction is which way a connection crosses the proxy.
type Direction uint8

// Directions.
const (
	Inbound Direction = iota
	Outbound
)

// Party is one side of a connection. Empty fields are left out of the line.
type Party struct {
	Addr      netip.AddrPort
	Workload  string // pod name
	Namespace string
	Identity  mesh.Identity // of the TLS connection
	Cluster   mesh.Cluster
}

// Connection is one TCP connection. Empty fields are left out of the line.
type Connection struct {
	Source      Party
	Destination Party
	HBONEAddr   string // dst.hbone_addr, the CONNECT authority
	Service     string // dst.service, a hostname
	Direction   Direction
	BytesSent   uint64
	BytesRecv   uint64
	Duration    time.Duration
	Err         error
}

// Request is one HTTP request through a waypoint.
type Request struct {
	Source          Party
	Destination     Party
	Service         string
	Upstream        string // cluster
	Route           string
	Method          string
	Authority       string
	Path            string
	Protocol        string // HTTP/1.1
	Status          int
	Flags           string // response flags; "" = "-"
	RequestBytes    uint64
	ResponseBytes   uint64
	Duration        time.Duration
	UpstreamLatency time.Duration
	RequestID       string
	UserAgent       string
	Err             error
}

// Logger writes access lines in the scope "access".
type Logger struct{}

// New returns a logger; out is usually a *logging.Writer.
func New(out io.Writer, format logging.Format, levels *logging.Levels) *Logger { panic("skeleton") }

// Opened writes "connection opened" at debug.
func (l *Logger) Opened(c *Connection) {}

// Complete writes "connection complete" at info, or at error when c.Err is set.
func (l *Logger) Complete(c *Connection) {}

// Failed writes "connection failed" at warn: refused before anything was sent.
func (l *Logger) Failed(c *Connection) {}

// Request writes "request" at info, or at error when r.Err is set.
func (l *Logger) Request(r *Request) {}
