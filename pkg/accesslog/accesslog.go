// Package accesslog writes one line per connection or request, with upstream's
// fields, in the scope "access".
//
//	…Z<TAB>info<TAB>access<TAB>connection complete<TAB>src.addr=10.244.1.7:51234 src.workload="cart-7c9f" … bytes_sent=120 duration="12ms"
//	{"level":"info","time":"…Z","scope":"access","message":"connection complete","src.addr":"10.244.1.7:51234",…}
//
// A line costs no allocation, and with a *logging.Writer behind it no waiting.
// Records are the caller's again when a method has returned. A Logger is safe for
// concurrent use.
package accesslog

import (
	"io"
	"log/slog"
	"net/netip"
	"sync"
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

func (d Direction) String() string { return [...]string{"inbound", "outbound"}[d] }

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

// Logger writes access lines.
type Logger struct {
	out    io.Writer
	format logging.Format
	level  *slog.LevelVar
	sink   logging.Sink // nil = none
	lines  sync.Pool    // *[]byte
}

// Scope is the log scope of access lines.
const Scope = "access"

// New returns a logger. out is called once per line and must be safe for
// concurrent use; usually it is a *logging.Writer.
func New(out io.Writer, format logging.Format, levels *logging.Levels) *Logger {
	return NewTo(out, format, levels, nil)
}

// NewTo is New with a copy of every line to sink, nil for none.
func NewTo(out io.Writer, format logging.Format, levels *logging.Levels, sink logging.Sink) *Logger {
	return &Logger{out: out, format: format, level: levels.Var(Scope), sink: sink}
}

// Opened writes "connection opened" at debug.
func (l *Logger) Opened(c *Connection) {
	l.connection(slog.LevelDebug, "connection opened", c, false)
}

// Complete writes "connection complete" at info, or at error when c.Err is set.
func (l *Logger) Complete(c *Connection) {
	l.connection(severity(c.Err), "connection complete", c, true)
}

// Failed writes "connection failed" at warn: refused before anything was sent.
func (l *Logger) Failed(c *Connection) {
	l.connection(slog.LevelWarn, "connection failed", c, true)
}

// Request writes "request" at info, or at error when r.Err is set.
func (l *Logger) Request(r *Request) {
	level := severity(r.Err)
	if level < l.level.Level() {
		return
	}
	buf, line := l.begin(level, "request")
	party(&line, sourceKeys(), &r.Source)
	party(&line, destinationKeys(), &r.Destination)
	text(&line, "dst.service", r.Service)
	r.head(&line)
	r.outcome(&line)
	l.end(buf, &line, r.Err)
}

func severity(err error) slog.Level {
	if err != nil {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// connection writes one line about c; its outcome only when it is over.
func (l *Logger) connection(level slog.Level, message string, c *Connection, over bool) {
	if level < l.level.Level() {
		return
	}
	buf, line := l.begin(level, message)
	party(&line, sourceKeys(), &c.Source)
	if c.Destination.Addr.IsValid() {
		line.Addr("dst.addr", c.Destination.Addr)
	}
	text(&line, "dst.hbone_addr", c.HBONEAddr)
	text(&line, "dst.service", c.Service)
	described(&line, destinationKeys(), &c.Destination)
	line.Text("direction", c.Direction.String())
	if over {
		line.Uint("bytes_sent", c.BytesSent)
		line.Uint("bytes_recv", c.BytesRecv)
		line.Millis("duration", c.Duration)
	}
	l.end(buf, &line, c.Err)
}

func (l *Logger) begin(level slog.Level, message string) (*[]byte, logging.Line) {
	buf, _ := l.lines.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	now := time.Now()
	line := logging.Begin(*buf, l.format, now, level, Scope, message)
	line.CopyTo(l.sink, now, level, Scope, message)
	return buf, line
}

func (l *Logger) end(buf *[]byte, line *logging.Line, err error) {
	if err != nil {
		line.Text("error", err.Error())
	}
	*buf = line.End()
	_, _ = l.out.Write(*buf) // the writer counts what it drops
	l.lines.Put(buf)
}

// keys are the field names of one side.
type keys struct{ addr, workload, namespace, identity, cluster string }

func sourceKeys() keys {
	return keys{"src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"}
}

func destinationKeys() keys {
	return keys{"dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"}
}

// party adds one side with its address.
func party(line *logging.Line, k keys, p *Party) {
	if p.Addr.IsValid() {
		line.Addr(k.addr, p.Addr)
	}
	described(line, k, p)
}

// described adds what is known about one side.
func described(line *logging.Line, k keys, p *Party) {
	text(line, k.workload, p.Workload)
	text(line, k.namespace, p.Namespace)
	if !p.Identity.IsZero() {
		line.Identity(k.identity, p.Identity)
	}
	text(line, k.cluster, string(p.Cluster))
}

// text adds a string unless it is empty.
func text(line *logging.Line, key, value string) {
	if value != "" {
		line.Text(key, value)
	}
}

// head adds the request line and what routing made of it.
func (r *Request) head(line *logging.Line) {
	text(line, "method", r.Method)
	text(line, "authority", r.Authority)
	text(line, "path", r.Path)
	text(line, "protocol", r.Protocol)
	text(line, "request_id", r.RequestID)
	text(line, "user_agent", r.UserAgent)
	text(line, "route", r.Route)
	text(line, "upstream", r.Upstream)
}

// outcome adds what became of the request.
func (r *Request) outcome(line *logging.Line) {
	line.Uint("status", uint64(max(r.Status, 0)))
	if r.Flags == "" {
		line.Text("flags", "-")
	} else {
		line.Text("flags", r.Flags)
	}
	line.Uint("bytes_recv", r.RequestBytes)
	line.Uint("bytes_sent", r.ResponseBytes)
	line.Millis("duration", r.Duration)
	if r.UpstreamLatency > 0 {
		line.Millis("upstream_duration", r.UpstreamLatency)
	}
}
