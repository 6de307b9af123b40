package h1

import (
	"bytes"
	stdhttp "net/http"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// ClientConn writes requests to a server's connection and reads responses.
type ClientConn struct {
	in     input
	out    output
	body   body
	fr     framing
	limits Limits
	keep   bool
	asked  bool // the current request asked for an upgrade
}

// NewClientConn returns the codec for a server's connection, which stays the caller's.
func NewClientConn(c Conn, opt Options) *ClientConn {
	return &ClientConn{in: input{src: c}, out: output{dst: c, lend: opt.Buffers}, limits: opt.Limits.OrDefault()}
}

// WriteRequest sends req's head and streams its body. bodyErr is the body's
// failure, writeErr the server's; after either the connection is not usable.
func (c *ClientConn) WriteRequest(req *http.Request) (bodyErr, writeErr error) {
	o := &c.out
	c.asked, c.keep = req.Upgrade != nil, false
	o.requestLine(req)
	o.fields(&req.Header)
	if req.Upgrade != nil {
		o.upgrade(req.Upgrade)
	}
	if req.ExpectContinue && req.Body != nil {
		o.field("expect", "100-continue")
	}
	if req.Body == nil {
		if wantsLength(req.Method) {
			o.contentLength(0)
		}
		o.endHead()
		return nil, o.flush()
	}
	chunked := req.Body.Length() < 0
	if chunked {
		o.field("transfer-encoding", "chunked")
	} else {
		o.contentLength(req.Body.Length())
	}
	o.endHead()
	if req.Body.Buffered() == 0 {
		if err := o.flush(); err != nil {
			return nil, err
		}
	}
	return o.copyBody(req.Body, chunked, &req.Trailer)
}

// wantsLength tells the methods whose missing body is said aloud (RFC 9110 §8.6).
func wantsLength(method string) bool { return method == "POST" || method == "PUT" || method == "PATCH" }

// ReadResponse waits for the next response head to req. An informational one
// (status below 200, but not 101) is followed by another. It returns io.EOF when
// the server ended before the first byte, *Error for a malformed response.
func (c *ClientConn) ReadResponse(req *http.Request, resp *http.Response) error {
	resp.Reset()
	head, err := c.in.head(c.limits.HeadBytes, nil)
	if err != nil {
		return err
	}
	line, rest := cutLine(head)
	if err := parseStatusLine(line, resp); err != nil {
		return err
	}
	if err := parseFields(rest, &resp.Header, &c.fr, c.limits.Fields); err != nil {
		return err
	}
	if err := c.fr.check(resp.Version); err != nil {
		return err
	}
	return c.beginResponse(req, resp)
}

func (c *ClientConn) beginResponse(req *http.Request, resp *http.Response) error {
	resp.ContentLength = c.fr.length
	c.keep = c.fr.persistent(resp.Version)
	if resp.Status == stdhttp.StatusSwitchingProtocols {
		c.keep = false
		if !c.asked || c.fr.upgrade == nil {
			return errSwitch
		}
		resp.Upgrade = c.fr.upgrade
		return nil
	}
	switch {
	case bodyless(req.Method, resp.Status):
		c.body.begin(&c.in, noBody, 0, nil, c.limits)
		return nil
	case c.fr.chunked:
		c.body.begin(&c.in, chunkedBody, -1, &resp.Trailer, c.limits)
	case c.fr.length == 0:
		c.body.begin(&c.in, noBody, 0, nil, c.limits)
		return nil
	case c.fr.length > 0:
		c.body.begin(&c.in, lengthBody, c.fr.length, nil, c.limits)
	default:
		c.keep = false
		c.body.begin(&c.in, closeBody, -1, nil, c.limits)
	}
	resp.Body = &c.body
	return nil
}

// parseStatusLine reads "HTTP/1.x SP 3DIGIT [SP reason]".
func parseStatusLine(line []byte, resp *http.Response) error {
	switch {
	case bytes.HasPrefix(line, []byte("HTTP/1.1 ")):
		resp.Version = http.HTTP11
	case bytes.HasPrefix(line, []byte("HTTP/1.0 ")):
		resp.Version = http.HTTP10
	default:
		return errStatusLine
	}
	code := line[9:]
	if len(code) > 3 && (code[3] != ' ' || !all(code[4:], isValue)) {
		return errStatusLine
	}
	if len(code) < 3 {
		return errStatusLine
	}
	n, ok := parseUint(code[:3])
	if !ok || n < 100 {
		return errStatusLine
	}
	resp.Status = int(n)
	return nil
}

// Reusable reports whether the connection can carry another request, provided
// that the last one was written completely: the response was read to its end
// and nothing came behind it.
func (c *ClientConn) Reusable() bool { return c.keep && c.body.done && c.in.buffered() == 0 }

// Buffered returns the bytes that have arrived and not been read: after a 101
// they are the first of the new protocol.
func (c *ClientConn) Buffered() []byte { return c.in.buf[c.in.r:c.in.w] }

// Received is the number of bytes read from the server since the connection began.
func (c *ClientConn) Received() int64 { return c.in.read }

// Sent is the number of bytes written to the server since the connection began.
func (c *ClientConn) Sent() int64 { return c.out.written }
