// Package http is the waypoint's HTTP message: what a codec reads, the filters
// and the router look at, and a codec writes. It knows no wire format; package
// h1 turns bytes into these values and back.
//
//	client ─ codec ─▶ Request  ─ filters ─ router ─▶ codec ─ endpoint
//	client ◀─ codec ─ Response ◀────── filters ───── codec ◀─ endpoint
//
// Field names are kept in lower case, as HTTP/2 has them on the wire, so that
// comparing is a plain byte comparison whatever the codec. Framing and
// connection fields (Content-Length, Transfer-Encoding, Connection, …) are never
// in a Header: a message's framing is its Body, and each codec writes its own.
//
// A message belongs to one request at a time and is reused for the next: every
// []byte that it hands out is valid until its Reset and must not be changed. No
// type here is safe for concurrent use.
package http

// Version is a protocol version of one hop.
type Version uint8

// Versions of HTTP.
const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
)

func (v Version) String() string { return [...]string{"HTTP/1.0", "HTTP/1.1", "HTTP/2"}[v] }

// Body is a message's content while it streams by.
type Body interface {
	// Read reads decoded content. It returns io.EOF at the message's end, after
	// which the message's Trailer is complete, and io.ErrUnexpectedEOF when the
	// peer went away before it.
	Read(p []byte) (int, error)
	// Length is the whole content's length in bytes, or -1 when only its end will tell.
	Length() int64
	// Buffered is how many bytes Read can return without waiting.
	Buffered() int
}

// Request is one request's head, and its body as a stream.
type Request struct {
	Method  string // as sent; methods are case-sensitive
	Scheme  string // "http" or "https"
	Version Version

	Header  Header
	Trailer Header
	Body    Body // nil when there is no content

	// Upgrade is the protocol that the client asks to switch to, nil for none.
	Upgrade []byte
	// ExpectContinue reports that the client waits for 100 before its body.
	ExpectContinue bool

	authority text
	target    text // path and query as they are sent on
	query     int  // index of '?' in target, or -1
	method    text
}

// text is a short string in a buffer that its owner reuses.
type text []byte

func (t *text) set(s []byte)         { *t = append((*t)[:0], s...) }
func (t *text) setString(s string)   { *t = append((*t)[:0], s...) }
func (r *Request) Authority() []byte { return r.authority }

// MethodBytes returns the method as bytes.
func (r *Request) MethodBytes() []byte {
	r.method.setString(r.Method)
	return r.method
}

// SetAuthority sets the host (and port) that the request is for.
func (r *Request) SetAuthority(a []byte) { r.authority.set(a) }

// Target returns path and query together, as they stand in a request line.
func (r *Request) Target() []byte { return r.target }

// SetTarget sets path and query together.
func (r *Request) SetTarget(t []byte) {
	r.target.set(t)
	r.query = index(r.target, '?')
}

// Path returns the path without the query.
func (r *Request) Path() []byte {
	if r.query < 0 {
		return r.target
	}
	return r.target[:r.query]
}

// Query returns the query without its '?', nil when there is none.
func (r *Request) Query() []byte {
	if r.query < 0 {
		return nil
	}
	return r.target[r.query+1:]
}

// SetPath replaces the path and keeps the query.
func (r *Request) SetPath(p []byte) {
	if r.query < 0 {
		r.SetTarget(p)
		return
	}
	t := make([]byte, 0, len(p)+len(r.target)-r.query)
	t = append(append(t, p...), r.target[r.query:]...)
	r.SetTarget(t)
}

// Host returns the authority without its port.
func (r *Request) Host() []byte { return StripPort(r.authority) }

// CopyHead makes r a copy of src but for its body and trailer.
func (r *Request) CopyHead(src *Request) {
	r.Reset()
	r.Method, r.Scheme, r.Version = src.Method, src.Scheme, src.Version
	r.Header.CopyFrom(&src.Header)
	r.SetAuthority(src.authority)
	r.SetTarget(src.target)
}

// Reset empties r for the next request and keeps its memory.
func (r *Request) Reset() {
	r.Method, r.Scheme, r.Version = "", "http", HTTP11
	r.Header.Reset()
	r.Trailer.Reset()
	r.Body, r.Upgrade, r.ExpectContinue = nil, nil, false
	r.authority, r.target, r.query = r.authority[:0], r.target[:0], -1
}

// Response is one response's head, and its body as a stream.
type Response struct {
	Status  int // 100 to 999
	Version Version

	Header  Header
	Trailer Header
	Body    Body // nil when there is no content

	// ContentLength is what the head declares, or -1. For a response to HEAD it
	// is told although there is no body.
	ContentLength int64
	// Upgrade is the protocol that a 101 switches to, nil for none.
	Upgrade []byte
	// Close asks that the connection to the client end after this response.
	Close bool
}

// Reset empties r for the next response and keeps its memory.
func (r *Response) Reset() {
	r.Status, r.Version = 0, HTTP11
	r.Header.Reset()
	r.Trailer.Reset()
	r.Body, r.ContentLength, r.Upgrade, r.Close = nil, -1, nil, false
}

// StripPort returns host without a trailing ":port"; IPv6 literals keep their brackets.
func StripPort(host []byte) []byte {
	for i := len(host) - 1; i >= 0; i-- {
		switch c := host[i]; {
		case c == ':':
			return host[:i]
		case c < '0' || c > '9':
			return host
		}
	}
	return host
}

func index(b []byte, c byte) int {
	for i, x := range b {
		if x == c {
			return i
		}
	}
	return -1
}
