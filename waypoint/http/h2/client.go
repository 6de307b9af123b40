package h2

import (
	"context"
	"errors"
	"io"
	"net"
	stdhttp "net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// Client makes connections to endpoints.
type Client struct {
	std    stdhttp.Transport
	limits h1.Limits
}

// NewClient returns a Client.
func NewClient(opt h1.Options) *Client {
	c := &Client{limits: opt.Limits.OrDefault()}
	c.std = stdhttp.Transport{
		DialContext:            dialed,
		Protocols:              onlyHTTP2(),
		DisableCompression:     true,
		MaxResponseHeaderBytes: int64(c.limits.HeadBytes),
		HTTP2: &stdhttp.HTTP2Config{
			MaxReceiveBufferPerConnection: connWindow,
			MaxReceiveBufferPerStream:     streamWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
	}
	return c
}

// ClientConn is a connection to an endpoint.
type ClientConn struct {
	std    *stdhttp.ClientConn
	conn   *conn
	limits h1.Limits
}

type connKey struct{}

// dialed takes the connection that Connect was given.
func dialed(ctx context.Context, _, _ string) (net.Conn, error) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return nil, errors.New("connect HTTP/2: no connection was given")
	}
	return c, nil
}

// Connect begins to speak HTTP/2 on s, which becomes the connection's. Nothing is
// waited for.
func (c *Client) Connect(ctx context.Context, s stream.Stream) (*ClientConn, error) {
	nobody := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	own := newConn(s, nil, nobody, nobody)
	std, err := c.std.NewClientConn(context.WithValue(ctx, connKey{}, own), "http", "endpoint:80")
	if err != nil {
		_ = own.Close()
		return nil, err
	}
	return &ClientConn{std: std, conn: own, limits: c.limits}, nil
}

// Exchange takes room for one request; ok is false when the connection has none,
// for the moment or for good.
func (c *ClientConn) Exchange() (e *Exchange, ok bool) {
	if c.std.Reserve() != nil {
		return nil, false
	}
	e = &Exchange{conn: c, events: make(chan event, 8), done: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	return e, true
}

// InFlight is the number of requests under way.
func (c *ClientConn) InFlight() int { return c.std.InFlight() }

// Leaving reports whether what carries the connection is about to end.
func (c *ClientConn) Leaving() bool { return stream.Leaving(c.conn.Stream) }

// Ended arranges for f to be called, once or more, when the connection takes no
// further requests and none is under way.
func (c *ClientConn) Ended(f func()) {
	c.std.SetStateHook(func(std *stdhttp.ClientConn) {
		if std.Err() != nil && std.InFlight() == 0 {
			go f() // the hook must not close its own connection
		}
	})
}

// Close ends the connection and what is under way on it.
func (c *ClientConn) Close() error {
	_ = c.std.Close()
	return c.conn.Close()
}

// Exchange is one request to an endpoint and its response. Close must be called.
type Exchange struct {
	conn   *ClientConn
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	events chan event
	done   chan struct{} // closed by Close
	sent   bool
	body   body
	sender *sender
	resp   *stdhttp.Response

	received atomic.Int64
	wrote    atomic.Int64

	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

var _ stream.Stream = (*Exchange)(nil)

// event is a head that arrived, or why none will.
type event struct {
	status int // informational
	fields stdhttp.Header
	resp   *stdhttp.Response
	err    error
}

// WriteRequest sends req's head and streams its body. bodyErr is the body's
// failure, writeErr the endpoint's.
func (e *Exchange) WriteRequest(req *http.Request) (bodyErr, writeErr error) {
	r := e.request(req)
	e.sent = true
	go func() {
		resp, err := e.conn.std.RoundTrip(r)
		if err != nil && e.sender != nil {
			_ = e.sender.Close() // a request that is refused as such is not read
		}
		select {
		case e.events <- event{resp: resp, err: err}:
		case <-e.done:
			if resp != nil {
				_ = resp.Body.Close()
			}
		}
	}()
	if e.sender == nil {
		return nil, nil
	}
	return e.sender.wait(), nil
}

// request makes net/http's request.
func (e *Exchange) request(req *http.Request) *stdhttp.Request {
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, fields textproto.MIMEHeader) error {
		select {
		case e.events <- event{status: code, fields: stdhttp.Header(fields)}:
		default: // the connection serves others, who must not wait
		}
		return nil
	}}
	r := (&stdhttp.Request{
		Method: req.Method,
		URL:    location(req),
		Host:   string(req.Authority()),
		Header: stdhttp.Header{"User-Agent": {""}}, // net/http adds its own otherwise
	}).WithContext(httptrace.WithClientTrace(e.ctx, trace))
	if req.Header.Has("user-agent") {
		delete(r.Header, "User-Agent")
	}
	give(r.Header, "", &req.Header)
	if req.ExpectContinue && req.Body != nil {
		r.Header["Expect"] = []string{"100-continue"}
	}
	announced := r.Header["Trailer"]
	delete(r.Header, "Trailer")
	e.wrote.Add(int64(headSize(r.Header) + len(req.Method) + len(req.Target()) + len(req.Authority())))
	if req.Body == nil {
		return r
	}
	r.ContentLength = req.Body.Length()
	e.sender = &sender{src: req.Body, trailer: &req.Trailer, announced: trailers(announced), count: &e.wrote, closed: make(chan struct{})}
	r.Body, r.Trailer = e.sender, e.sender.announced
	return r
}

// trailers is the header that the fields announced in list will be put in.
func trailers(list []string) stdhttp.Header {
	out := stdhttp.Header{}
	for _, l := range list {
		for rest := []byte(l); len(rest) > 0; {
			var name []byte
			name, rest = http.NextToken(rest)
			switch key := stdhttp.CanonicalHeaderKey(string(name)); key {
			case "", "Transfer-Encoding", "Trailer", "Content-Length": // which may not stand there
			default:
				out[key] = nil
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// location makes a URL of which net/http takes exactly the request's target.
func location(req *http.Request) *url.URL {
	u := &url.URL{Scheme: "http", Host: string(req.Authority()), Opaque: string(req.Path()), RawQuery: string(req.Query())}
	u.ForceQuery = req.Query() != nil && len(req.Query()) == 0
	if len(u.Opaque) > 1 && u.Opaque[:2] == "//" { // which would be taken for an authority
		u.Opaque = "//" + u.Host + u.Opaque
	}
	return u
}

// errSwitched is a 101, which HTTP/2 does not have.
var errSwitched = &h1.Error{Status: stdhttp.StatusBadGateway, Text: "101 in HTTP/2"}

// ReadResponse waits for the next response head. An informational one is followed
// by another.
func (e *Exchange) ReadResponse(_ *http.Request, resp *http.Response) error {
	resp.Reset()
	select {
	case ev := <-e.events:
		return e.take(ev, resp)
	case <-e.ctx.Done():
		return context.Cause(e.ctx)
	}
}

func (e *Exchange) take(ev event, resp *http.Response) error {
	if ev.err != nil {
		if cause := context.Cause(e.ctx); cause != nil {
			return cause
		}
		return ev.err
	}
	resp.Version, resp.Status = http.HTTP2, ev.status
	if ev.resp == nil {
		e.received.Add(int64(headSize(ev.fields)))
		take(&resp.Header, ev.fields)
		return nil
	}
	r := ev.resp
	e.resp, resp.Status, resp.ContentLength = r, r.StatusCode, r.ContentLength
	e.received.Add(int64(headSize(r.Header)))
	switch {
	case resp.Status == stdhttp.StatusSwitchingProtocols:
		return errSwitched
	case len(r.Header) > e.conn.limits.Fields:
		return h1.ErrTooManyFields
	}
	take(&resp.Header, r.Header, "Content-Length", "Trailer")
	if r.Body != stdhttp.NoBody {
		e.body = body{src: reading{e, r.Body}, length: r.ContentLength, trailer: &resp.Trailer, fields: func() stdhttp.Header { return r.Trailer }, count: &e.received}
		resp.Body = &e.body
	} else {
		take(&resp.Trailer, r.Trailer)
	}
	return nil
}

// reading is a response's body whose failure is called by its cause.
type reading struct {
	e   *Exchange
	src io.Reader
}

func (r reading) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if err != nil && err != io.EOF {
		if cause := context.Cause(r.e.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Reusable reports whether the exchange ended in good order. What is given back is
// its room in the connection, which is there in any case.
func (e *Exchange) Reusable() bool { return e.ctx.Err() == nil }

// Received is the number of bytes of the response, its head before compression.
func (e *Exchange) Received() int64 { return e.received.Load() }

// Sent is the number of bytes of the request, its head before compression.
func (e *Exchange) Sent() int64 { return e.wrote.Load() }

// Read implements stream.Stream; an exchange is read by its response's body.
func (e *Exchange) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Write implements stream.Stream.
func (e *Exchange) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// CloseWrite implements stream.Stream: the request's end is the stream's.
func (e *Exchange) CloseWrite() error { return nil }

// Reset ends the exchange, and tells the endpoint so.
func (e *Exchange) Reset() { e.cancel(context.Canceled) }

// Close ends what is still open of the exchange.
func (e *Exchange) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	e.ended = true
	if e.timer != nil {
		e.timer.Stop()
	}
	if !e.sent {
		e.conn.std.Release()
	}
	e.cancel(context.Canceled)
	close(e.done)
	return nil
}

// SetReadDeadline ends the exchange at a time, zero for never.
func (e *Exchange) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	if e.ended {
		return net.ErrClosed
	}
	if !t.IsZero() {
		e.timer = time.AfterFunc(time.Until(t), func() { e.cancel(os.ErrDeadlineExceeded) })
	}
	return nil
}

// SetWriteDeadline implements stream.Stream: the read deadline is for both.
func (e *Exchange) SetWriteDeadline(time.Time) error { return nil }

// sender is a request's body as net/http reads it.
type sender struct {
	src       http.Body
	trailer   *http.Header
	announced stdhttp.Header
	count     *atomic.Int64

	mu     sync.Mutex // held while src is read
	over   bool       // src is somebody else's again
	err    error      // of src
	closed chan struct{}
	once   sync.Once
}

func (s *sender) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, net.ErrClosed
	}
	n, err := s.src.Read(p)
	s.count.Add(int64(n))
	switch {
	case err == io.EOF:
		s.end()
	case err != nil:
		s.err = err
	}
	return n, err
}

// end puts the trailer where it was announced.
func (s *sender) end() {
	for i := range s.trailer.Len() {
		name, value := s.trailer.At(i)
		key := stdhttp.CanonicalHeaderKey(string(name))
		if _, ok := s.announced[key]; ok {
			s.announced[key] = append(s.announced[key], string(value))
		}
	}
}

// Close is called by net/http when it reads no more.
func (s *sender) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// wait returns when src will not be read any more, and how reading it ended.
func (s *sender) wait() error {
	<-s.closed
	s.mu.Lock() // a read that Close did not wait for
	defer s.mu.Unlock()
	s.over = true
	return s.err
}
