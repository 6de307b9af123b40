// Package h1 is the waypoint's HTTP/1.1 codec (RFC 9110, 9112): both ends of a
// connection, streaming, and strict about where a message begins and ends.
//
//	ServerConn   ReadRequest ─▶ http.Request    http.Response ─▶ WriteResponse
//	ClientConn   WriteRequest ◀─ http.Request   http.Response ◀─ ReadResponse
//
// A proxy that is lenient about framing lets one client put a request into
// another's connection. So a message is refused whenever two readers could
// disagree about its extent: Content-Length beside Transfer-Encoding or given
// twice, a transfer coding other than chunked, line folding, a bare CR or LF,
// white space around a field's name, a chunk size that overflows. What passes is
// not forwarded as received but written anew from the parsed message.
//
// In steady state a request costs no allocation: each connection reuses its
// buffers, and headers are offsets into them.
//
// Reading and writing are independent halves: one goroutine may read from a
// connection while another one writes to it. Neither half is safe for more than one.
package h1

import (
	"fmt"
	stdhttp "net/http"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Limits bounds what a peer can make a connection hold.
type Limits struct {
	HeadBytes int // request or status line and fields together; 431 beyond
	Fields    int // number of fields; 431 beyond
}

// defaultLimits are those of upstream's waypoint.
var defaultLimits = Limits{HeadBytes: 60 << 10, Fields: 100}

// OrDefault returns l with the default for what is not set.
func (l Limits) OrDefault() Limits {
	if l.HeadBytes <= 0 {
		l.HeadBytes = defaultLimits.HeadBytes
	}
	if l.Fields <= 0 {
		l.Fields = defaultLimits.Fields
	}
	return l
}

// Error is a message that was refused. As a request it is answered with Status.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%d)", e.Text, e.Status) }

// Reason is the word of the closed list for e.
func (e *Error) Reason() reason.Reason {
	if e.Status == stdhttp.StatusRequestHeaderFieldsTooLarge {
		return reason.HeadersTooLarge
	}
	return reason.MalformedHTTP
}

func bad(text string) *Error { return &Error{stdhttp.StatusBadRequest, text} }

// ErrTooManyFields refuses a header section of more fields than Limits allow.
var ErrTooManyFields = &Error{stdhttp.StatusRequestHeaderFieldsTooLarge, "too many header fields"}

// The refusals, each one value so that refusing costs nothing.
var (
	errHeadTooLarge   = &Error{stdhttp.StatusRequestHeaderFieldsTooLarge, "header section too large"}
	errVersion        = &Error{stdhttp.StatusHTTPVersionNotSupported, "HTTP version not supported"}
	errConnect        = &Error{stdhttp.StatusMethodNotAllowed, "CONNECT is not allowed"}
	errCoding         = &Error{stdhttp.StatusNotImplemented, "transfer coding other than chunked"}
	errExpectation    = &Error{stdhttp.StatusExpectationFailed, "unknown expectation"}
	errBareLF         = bad("line ends without CR")
	errStartLine      = bad("malformed start line")
	errMethod         = bad("malformed method")
	errTarget         = bad("malformed request target")
	errAuthority      = bad("malformed authority")
	errFold           = bad("folded header line")
	errFieldName      = bad("malformed field name")
	errFieldValue     = bad("control character in field value")
	errLengthValue    = bad("malformed Content-Length")
	errLengthTwice    = bad("more than one Content-Length")
	errCodingTwice    = bad("more than one Transfer-Encoding")
	errLengthCoding   = bad("both Content-Length and Transfer-Encoding")
	errCodingVersion  = bad("Transfer-Encoding in HTTP/1.0")
	errHostMissing    = bad("Host missing")
	errHostTwice      = bad("more than one Host")
	errChunkSize      = bad("malformed chunk size")
	errChunkExtension = bad("malformed chunk extension")
	errChunkEnd       = bad("chunk not followed by CRLF")
	errTrailer        = bad("malformed trailer section")
	errStatusLine     = bad("malformed status line")
	errSwitch         = bad("101 to a request that asked for no upgrade")
)
