package h1

import (
	"io"
	stdhttp "net/http"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Conn is what a codec needs of a connection: a socket, or a tunnel's stream.
type Conn interface {
	io.Reader
	io.Writer
	SetReadDeadline(time.Time) error
}

// Options are shared by the connections of one proxy.
type Options struct {
	Limits      Limits
	IdleTimeout time.Duration // wait for a request to begin; 0 = forever
	HeadTimeout time.Duration // wait for a head that has begun to be complete; 0 = forever
	Buffers     *Buffers      // required
}

// ServerConn reads requests from a client's connection and writes responses.
type ServerConn struct {
	conn   Conn
	opt    Options
	in     input
	out    output
	body   body
	fr     framing
	wait   func() // c.awaitHead, bound once
	timed  bool   // a read deadline is set
	keep   bool   // both sides are willing to go on after this exchange
	failed bool   // an exchange ended half-way
}

// NewServerConn returns the codec for a client's connection, which stays the caller's.
func NewServerConn(c Conn, opt Options) *ServerConn {
	opt.Limits = opt.Limits.OrDefault()
	s := &ServerConn{conn: c, opt: opt, in: input{src: c}, out: output{dst: c, lend: opt.Buffers}}
	s.wait = s.awaitHead
	return s
}

// Preload puts bytes that were read from the connection already in front of it.
func (c *ServerConn) Preload(b []byte) {
	c.in.buf = make([]byte, max(smallBuffer, 2*len(b)))
	c.in.r, c.in.w = 0, copy(c.in.buf, b)
	c.in.read = int64(len(b))
}

func (c *ServerConn) awaitHead() {
	if c.opt.HeadTimeout > 0 {
		c.deadline(c.opt.HeadTimeout)
	}
}

func (c *ServerConn) deadline(d time.Duration) {
	c.timed = d > 0
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	_ = c.conn.SetReadDeadline(t) // an ended connection shows at the next read
}

// ReadRequest waits for the next request and fills req, whose previous content
// is gone. It returns io.EOF when the client ended between requests, *Error for
// a request to be refused, os.ErrDeadlineExceeded when a timeout passed.
func (c *ServerConn) ReadRequest(req *http.Request) error {
	req.Reset()
	if c.in.buffered() == 0 && c.opt.IdleTimeout > 0 {
		c.deadline(c.opt.IdleTimeout)
	}
	head, err := c.in.head(c.opt.Limits.HeadBytes, c.wait)
	if c.timed {
		c.deadline(0)
	}
	c.keep = false
	if err != nil {
		return err
	}
	if err := parseRequest(head, req, &c.fr, c.opt.Limits.Fields); err != nil {
		return err
	}
	c.keep = c.fr.persistent(req.Version)
	switch {
	case c.fr.chunked:
		c.body.begin(&c.in, chunkedBody, -1, &req.Trailer, c.opt.Limits)
		req.Body = &c.body
	case c.fr.length > 0:
		c.body.begin(&c.in, lengthBody, c.fr.length, nil, c.opt.Limits)
		req.Body = &c.body
	default:
		c.body.begin(&c.in, noBody, max(c.fr.length, 0), nil, c.opt.Limits)
	}
	return nil
}

// Partial reports whether the beginning of a request has arrived; after a
// failed ReadRequest it tells a client that is slow from one that is idle.
func (c *ServerConn) Partial() bool { return c.in.buffered() > 0 }

// WriteInformational sends a 1xx response other than 101 at once. A client of
// HTTP/1.0 does not know them and gets nothing.
func (c *ServerConn) WriteInformational(req *http.Request, resp *http.Response) error {
	if req.Version == http.HTTP10 {
		return nil
	}
	c.out.statusLine(resp.Status)
	c.out.fields(&resp.Header)
	c.out.endHead()
	return c.out.flush()
}

// WriteSwitch sends a 101. Afterwards the connection carries resp.Upgrade's protocol.
func (c *ServerConn) WriteSwitch(resp *http.Response) error {
	c.keep = false
	c.out.statusLine(resp.Status)
	c.out.fields(&resp.Header)
	c.out.upgrade(resp.Upgrade)
	c.out.endHead()
	return c.out.flush()
}

// WriteResponse sends the final response to req and streams its body. bodyErr
// is the body's failure, writeErr the client's; after either the connection is
// not usable.
func (c *ServerConn) WriteResponse(req *http.Request, resp *http.Response) (bodyErr, writeErr error) {
	chunked := c.responseHead(req, resp)
	if resp.Body == nil || bodyless(req.Method, resp.Status) {
		writeErr = c.out.flush()
	} else {
		bodyErr, writeErr = c.out.copyBody(resp.Body, chunked, &resp.Trailer)
	}
	c.failed = bodyErr != nil || writeErr != nil
	return bodyErr, writeErr
}

func (c *ServerConn) responseHead(req *http.Request, resp *http.Response) (chunked bool) {
	o := &c.out
	o.statusLine(resp.Status)
	o.fields(&resp.Header)
	switch {
	case bodyless(req.Method, resp.Status):
		if resp.ContentLength >= 0 && resp.Status >= 200 && resp.Status != stdhttp.StatusNoContent {
			o.contentLength(resp.ContentLength)
		}
	case resp.Body == nil:
		o.contentLength(0)
	case resp.Body.Length() >= 0:
		o.contentLength(resp.Body.Length())
	case req.Version == http.HTTP11:
		o.field("transfer-encoding", "chunked")
		chunked = true
	default:
		c.keep = false // an HTTP/1.0 client reads until the end of the connection
	}
	if resp.Close {
		c.keep = false
	}
	switch {
	case !c.keep:
		o.field("connection", "close")
	case req.Version == http.HTTP10:
		o.field("connection", "keep-alive")
	}
	o.endHead()
	return chunked
}

// bodyless reports whether a response never has content (RFC 9112 §6.3).
func bodyless(method string, status int) bool {
	return method == "HEAD" || status < 200 || status == stdhttp.StatusNoContent || status == stdhttp.StatusNotModified
}

// BodyDone reports whether the request's body has been read to its end.
func (c *ServerConn) BodyDone() bool { return c.body.done }

// Reusable reports whether another request can be read after this exchange: a
// request whose body was not read to its end leaves the connection nowhere.
func (c *ServerConn) Reusable() bool { return c.keep && !c.failed && c.body.done }

// Fill reads more bytes of the client's into the buffer, once, and returns how
// many are in it. It lets a proxy notice that the client left.
func (c *ServerConn) Fill() (int, error) {
	if c.in.buffered() >= smallBuffer/2 {
		return c.in.buffered(), nil // enough of the next request to know that the client is there
	}
	err := c.in.fill()
	return c.in.buffered(), err
}

// Buffered returns the bytes that have arrived and not been read: after a 101
// they are the first of the new protocol.
func (c *ServerConn) Buffered() []byte { return c.in.buf[c.in.r:c.in.w] }

// Received and Sent count the connection's bytes since it began.
func (c *ServerConn) Received() int64 { return c.in.read }

// Sent is the number of bytes written to the client.
func (c *ServerConn) Sent() int64 { return c.out.written }
