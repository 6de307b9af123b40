package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	stdhttp "net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/router"
	"github.com/culvert-mesh/culvert/waypoint/stream"
	"github.com/culvert-mesh/culvert/waypoint/upstream"
)

// HTTP implements listener.Handler: it serves the requests of one client's
// connection, one after another, or with HTTP/2 side by side.
func (p *Proxy) HTTP(ctx context.Context, c *listener.Conn) {
	if c.HTTP2 {
		p.serveHTTP2(ctx, c)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := h1.NewServerConn(c.Stream, p.cfg.HTTP)
	srv.Preload(c.First)
	c.First = nil
	s := &session{p: p, ctx: ctx, cancel: cancel, conn: c, down: c.Stream, srv: srv, uri: []byte(c.Identity.String())}
	s.watch.init(s, srv.Fill)
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	defer s.watch.stop()
	p.add(s)
	defer p.remove(s)
	for s.next() {
	}
	if ctx.Err() == nil {
		s.end()
	}
}

// abort ends the client's connection and the endpoint's that works for it.
func (s *session) abort() {
	s.down.Reset()
	if up := s.upNow.Load(); up != nil {
		up.Reset()
	}
}

// client is the codec of a client's connection.
type client interface {
	ReadRequest(*http.Request) error
	Partial() bool // the beginning of a request is there
	WriteInformational(*http.Request, *http.Response) error
	WriteResponse(*http.Request, *http.Response) (bodyErr, writeErr error)
	Reusable() bool // another request can follow
	Received() int64
	Sent() int64
}

// session is one client's connection, or with HTTP/2 one stream of it. The
// exchange is its request of the moment and is reused for the next.
type session struct {
	p       *Proxy
	ctx     context.Context
	cancel  context.CancelFunc
	conn    *listener.Conn
	down    stream.Stream
	srv     client
	watch   watch
	series  seriesCache
	uri     []byte                         // of the client\'s identity
	counted struct{ received, sent int64 } // of the client's bytes, at the end of the last request
	idle    atomic.Bool                    // between two requests
	woken   bool                           // by draining, while a request was arriving
	upNow   atomic.Pointer[upstream.Conn]  // to be reset when ctx ends

	req  http.Request
	resp http.Response
	exchange
}

// exchange is what becomes of one request.
type exchange struct {
	began    time.Time
	deadline time.Time           // of the route's timeout; zero without
	limit    time.Time           // of the try at hand; zero without
	retries  int                 // that the route asked for, so far
	avoid    []*cluster.Endpoint // of former tries
	kept     []byte              // the body, when it may be sent again
	snap     *config.Snapshot
	dest     *config.Destination
	route    *config.Route
	weighted *config.WeightedCluster
	cluster  *config.Cluster
	endpoint *cluster.Endpoint
	x        filter.Exchange
	passed   int // filters that saw the request

	up       *upstream.Conn
	upload   chan sent // not nil while a body is sent by a goroutine of its own
	uploaded sent      // once it has ended

	flags         string
	err           error // for the log
	dead          bool  // the client's connection is of no more use
	status        int
	received      int64 // bytes of the client's before this request
	sent          int64
	tunnelled     uint64 // bytes after a 101: to the endpoint,
	returned      uint64 // and back
	upstreamBegan time.Time
	upstreamTook  time.Duration
}

// sent is how the sending of a request ended.
type sent struct{ bodyErr, writeErr error }

// next serves one request and reports whether another may follow.
func (s *session) next() bool {
	if err := s.read(); err != nil {
		s.badRequest(err)
		return false
	}
	defer s.p.enter()()
	s.begin()
	s.serve()
	s.finish()
	s.record()
	return !s.dead && s.srv.Reusable()
}

// read waits for a request. Draining wakes it; a request that has begun to
// arrive is served all the same.
func (s *session) read() error {
	for {
		if s.p.draining.Load() && !s.srv.Partial() {
			return io.EOF
		}
		s.idle.Store(true)
		err := s.srv.ReadRequest(&s.req)
		s.idle.Store(false)
		if s.p.draining.Load() {
			_ = s.down.SetReadDeadline(time.Time{})
			if errors.Is(err, os.ErrDeadlineExceeded) && s.srv.Partial() && !s.woken {
				s.woken = true
				continue
			}
		}
		return err
	}
}

// badRequest answers a request that could not be read; a client that merely
// left, or rested for too long between requests, gets nothing.
func (s *session) badRequest(err error) {
	var refused *h1.Error
	switch {
	case errors.As(err, &refused):
	case errors.Is(err, os.ErrDeadlineExceeded) && s.srv.Partial():
		refused = &h1.Error{Status: stdhttp.StatusRequestTimeout, Text: "request head not complete in time"}
	default:
		return
	}
	s.begin()
	s.flags = "DPE"
	s.err = reason.New(refused.Reason(), "read request", s.conn.Source.String(), refused)
	s.resp.Reset()
	s.resp.Close = true
	s.reply(refused.Status, refused.Text)
	s.record()
}

// begin resets the exchange for the request that was just read.
func (s *session) begin() {
	s.exchange = exchange{began: time.Now(), received: s.counted.received, sent: s.counted.sent}
	s.resp.Reset()
	s.x = filter.Exchange{Source: s.conn.Source, Identity: s.conn.Identity, Destination: s.conn.Destination, URI: s.uri}
	s.snap, s.dest = s.p.lookup(s.conn.Name)
}

// serve takes one request to its answer.
func (s *session) serve() {
	if s.dest == nil {
		s.fail(stdhttp.StatusNotFound, "NR", reason.New(reason.UnservedAddress, "serve request", s.conn.Name, nil))
		return
	}
	s.ownHeaders()
	reply, passed := s.dest.HTTPFilters.Request(&s.x, &s.req)
	s.passed = passed
	if reply != nil {
		s.err = reason.New(reply.Reason, "authorize request", s.x.Denied, nil)
		s.reply(reply.Status, reply.Body)
		return
	}
	if !s.choose() {
		return
	}
	s.forward()
}

// ownHeaders sets what every request through a waypoint carries.
func (s *session) ownHeaders() {
	h := &s.req.Header
	if !h.Has("x-request-id") {
		var space [36]byte
		h.AddValue("x-request-id", newRequestID(&space))
	}
	if !h.Has("x-forwarded-proto") {
		h.Add("x-forwarded-proto", s.req.Scheme)
	}
	if len(s.req.Authority()) == 0 { // an HTTP/1.0 request without Host
		s.req.SetAuthority([]byte(s.dest.Service.Hostname))
	}
}

// choose finds the route and its cluster; false means that it has answered.
func (s *session) choose() bool {
	name := s.dest.RoutesFor(s.conn.Identity.Namespace)
	if name == "" {
		return true // everything goes to the destination's own cluster
	}
	if table := s.snap.Routes[name]; table != nil {
		s.route = table.Route(&s.req)
	}
	r := s.route
	switch {
	case r == nil:
		s.fail(stdhttp.StatusNotFound, "NR", reason.New(reason.NoRoute, "route request", string(s.req.Path()), nil))
	case r.Direct != nil:
		s.direct(r.Direct)
	case r.Redirect != nil:
		s.redirect(r)
	default:
		return s.chooseCluster(r.Forward)
	}
	return false
}

func (s *session) chooseCluster(f *config.Forward) bool {
	s.weighted = f.Pick(randomUint32())
	if s.weighted == nil {
		s.fail(stdhttp.StatusServiceUnavailable, "NC", reason.New(reason.BackendUnresolved, "choose cluster", s.route.Name, errors.New("every weight is 0")))
		return false
	}
	s.cluster = s.snap.Clusters[s.weighted.Name]
	if s.cluster == nil {
		s.fail(f.NoCluster, "NC", errNoCluster(s.weighted.Name))
		return false
	}
	if f.Timeout > 0 {
		s.deadline = s.began.Add(f.Timeout)
	}
	if m := s.weighted.RequestMods; m != nil {
		m.ApplyRequest(&s.req)
	}
	for i := range s.route.RequestMods {
		s.route.RequestMods[i].ApplyRequest(&s.req)
	}
	router.Rewrite(s.route, &s.req)
	return true
}

func (s *session) direct(d *config.Direct) {
	if d.Status >= stdhttp.StatusInternalServerError {
		s.err = fmt.Errorf("answer for route %s: %s", s.route.Name, cmp.Or(string(d.Body), stdhttp.StatusText(d.Status)))
	}
	if len(d.Body) > 0 && !s.resp.Header.Has("content-type") {
		s.resp.Header.Set("content-type", "text/plain")
	}
	applyResponse(s.route, &s.resp)
	s.write(d.Status, d.Body)
}

func (s *session) redirect(r *config.Route) {
	applyResponse(r, &s.resp)
	s.resp.Header.Set("location", router.Location(r, &s.req))
	s.write(r.Redirect.Status, nil)
}

// fail answers with an error of our own.
func (s *session) fail(status int, flags string, err error) {
	s.flags, s.err = flags, err
	s.reply(status, string(reason.Of(err)))
}

// reply answers with a text of our own.
func (s *session) reply(status int, text string) {
	s.resp.Header.Set("content-type", "text/plain")
	s.write(status, []byte(text))
}

// write sends an answer of our own, whose header may have fields already.
func (s *session) write(status int, body []byte) {
	if s.grpc() {
		status, body = s.writeGRPC(status, body)
	}
	s.resp.Status = status
	s.resp.ContentLength = int64(len(body))
	if len(body) > 0 {
		s.resp.Body = &fixed{rest: body, length: int64(len(body))}
	}
	s.respond()
}

// respond sends s.resp up through the filters to the client.
func (s *session) respond() {
	if s.dest != nil {
		s.dest.HTTPFilters.Response(&s.x, &s.resp, s.passed)
	}
	s.status = s.resp.Status
	s.resp.Close = s.resp.Close || s.p.draining.Load()
	bodyErr, writeErr := s.srv.WriteResponse(&s.req, &s.resp)
	switch {
	case writeErr != nil:
		s.flags, s.err = "DC", reason.New(reason.DownstreamClosed, "write response", s.conn.Source.String(), writeErr)
	case bodyErr != nil && isTimeout(bodyErr):
		s.flags, s.err = "UT", reason.New(reason.RequestTimeout, "read response", s.endpoint.String(), bodyErr)
	case bodyErr != nil:
		s.flags, s.err = "UC", reason.New(reason.UpstreamReset, "read response", s.endpoint.String(), bodyErr)
	default:
		return
	}
	s.dead = true
	s.cancel() // the client must not take what it got for the whole
}

// end closes a connection that carries no further request. What the client still
// sends is read for a moment, because a reset could overtake our last answer.
func (s *session) end() {
	if s.down.CloseWrite() != nil || s.down.SetReadDeadline(time.Now().Add(linger)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, s.down, 1<<20)
}

// fixed is the body of an answer of our own.
type fixed struct {
	rest   []byte
	length int64
}

func (f *fixed) Read(p []byte) (int, error) {
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	if len(f.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (f *fixed) Length() int64 { return f.length }
func (f *fixed) Buffered() int { return len(f.rest) }
