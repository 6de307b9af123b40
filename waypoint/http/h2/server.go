package h2

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	stdhttp "net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// Server serves one client's connection.
type Server struct {
	conn    *conn
	limits  h1.Limits
	std     stdhttp.Server
	handle  func(*Stream)
	drained sync.Once
	began   sync.Once
	begun   chan struct{} // closed when net/http has the connection

	mu     sync.Mutex
	ended  bool
	active sync.WaitGroup
}

// NewServer returns the server of a client's connection, of which first has been
// read already. handle is called for each request, in a goroutine of its own.
func NewServer(s stream.Stream, first []byte, local, remote netip.AddrPort, opt h1.Options, handle func(*Stream)) *Server {
	out := &Server{conn: newConn(s, first, local, remote), limits: opt.Limits.OrDefault(), handle: handle, begun: make(chan struct{})}
	out.std = stdhttp.Server{
		Handler:        stdhttp.HandlerFunc(out.serve),
		Protocols:      onlyHTTP2(),
		IdleTimeout:    opt.IdleTimeout,
		MaxHeaderBytes: out.limits.HeadBytes,
		ConnState:      out.state,
		ErrorLog:       log.New(io.Discard, "", 0), // what a client does wrong is its own affair
		HTTP2: &stdhttp.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReceiveBufferPerStream:     streamWindow,
		},
	}
	return out
}

// Serve returns when the connection has ended and every request of it. When ctx
// ends the connection is reset.
func (s *Server) Serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.conn.Reset)
	defer stop()
	_ = s.std.Serve(&listener{conn: s.conn}) // it ends with the connection, or because it was drained
	<-s.conn.closed
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.active.Wait()
}

// Drain tells the client to open no further requests here; the connection ends
// after those under way. It returns at once, and may be called before Serve.
func (s *Server) Drain() {
	s.drained.Do(func() {
		go func() {
			select {
			case <-s.begun: // net/http would not take it after Shutdown, nor end it
			case <-s.conn.closed:
			}
			_ = s.std.Shutdown(context.Background()) // it ends with the connection
		}()
	})
}

// state is told how far net/http is with the connection.
func (s *Server) state(_ net.Conn, now stdhttp.ConnState) {
	if now == stdhttp.StateActive {
		s.began.Do(func() { close(s.begun) })
	}
}

// enter counts a request; false means that the connection has ended already.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.active.Add(1)
	}
	return !s.ended
}

func (s *Server) serve(w stdhttp.ResponseWriter, r *stdhttp.Request) {
	if !s.enter() {
		return
	}
	defer s.active.Done()
	st := &Stream{w: w, r: r, ctl: stdhttp.NewResponseController(w), limits: s.limits}
	s.handle(st)
	st.end()
	if st.broken.Load() {
		panic(stdhttp.ErrAbortHandler) // the stream is reset: the client must not take what it got for the whole
	}
}

// listener hands out one connection, and ends when that does.
type listener struct {
	conn *conn
	done bool
}

func (l *listener) Accept() (net.Conn, error) {
	if l.done {
		<-l.conn.closed
		return nil, net.ErrClosed
	}
	l.done = true
	return l.conn, nil
}

// Close implements net.Listener: the connection stays the server's.
func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return l.conn.local }

// Stream is one request of a client and its response.
type Stream struct {
	w      stdhttp.ResponseWriter
	r      *stdhttp.Request
	ctl    *stdhttp.ResponseController
	limits h1.Limits
	body   body

	broken   atomic.Bool
	received atomic.Int64
	sent     atomic.Int64

	mu    sync.Mutex
	ended bool // net/http has taken w back
}

var _ stream.Stream = (*Stream)(nil)

// Context ends when the client resets the stream or leaves.
func (s *Stream) Context() context.Context { return s.r.Context() }

// ReadRequest fills req, whose previous content is gone. It returns *h1.Error for
// a request to be refused.
func (s *Stream) ReadRequest(req *http.Request) error {
	req.Reset()
	r := s.r
	req.Version, req.Method = http.HTTP2, r.Method
	if r.TLS != nil {
		req.Scheme = "https"
	}
	s.received.Add(int64(headSize(r.Header) + len(r.Method) + len(r.RequestURI) + len(r.Host)))
	if len(r.Header) > s.limits.Fields {
		return h1.ErrTooManyFields
	}
	if err := h1.CheckTarget(req, []byte(r.Host), []byte(r.RequestURI)); err != nil {
		return err
	}
	take(&req.Header, r.Header, "Content-Length", "Host")
	for name := range r.Trailer {
		req.Header.AddLower([]byte("trailer"), []byte(name))
	}
	if r.Body != nil && r.Body != stdhttp.NoBody && r.ContentLength != 0 {
		s.body = body{src: r.Body, length: r.ContentLength, trailer: &req.Trailer, fields: func() stdhttp.Header { return r.Trailer }, count: &s.received}
		req.Body = &s.body
	}
	return nil
}

// WriteInformational sends a 1xx response at once.
func (s *Stream) WriteInformational(_ *http.Request, resp *http.Response) error {
	if resp.Status == stdhttp.StatusContinue {
		return nil // net/http says so itself when the body is read
	}
	give(s.w.Header(), "", &resp.Header)
	s.w.WriteHeader(resp.Status)
	clear(s.w.Header())
	return s.r.Context().Err()
}

// WriteResponse sends the final response and streams its body. bodyErr is the
// body's failure, writeErr the client's.
func (s *Stream) WriteResponse(req *http.Request, resp *http.Response) (bodyErr, writeErr error) {
	s.writeHead(req, resp)
	if resp.Body != nil && req.Method != "HEAD" {
		bodyErr, writeErr = s.copyBody(resp)
	} else if req.Method != "HEAD" {
		give(s.w.Header(), stdhttp.TrailerPrefix, &resp.Trailer)
	}
	if bodyErr != nil || writeErr != nil {
		s.broken.Store(true)
	}
	return bodyErr, writeErr
}

func (s *Stream) writeHead(req *http.Request, resp *http.Response) {
	h := s.w.Header()
	give(h, "", &resp.Header)
	for _, own := range [...]string{"Date", "Content-Type"} { // which net/http would add
		if _, ok := h[own]; !ok {
			h[own] = nil
		}
	}
	switch {
	case resp.Body != nil && resp.Body.Length() >= 0:
		h["Content-Length"] = []string{itoa(resp.Body.Length())}
	case resp.Body == nil && resp.ContentLength > 0: // of an answer to HEAD
		h["Content-Length"] = []string{itoa(resp.ContentLength)}
	}
	s.sent.Add(int64(headSize(h)))
	s.w.WriteHeader(resp.Status)
}

// copyBody passes on what arrives as it arrives.
func (s *Stream) copyBody(resp *http.Response) (bodyErr, writeErr error) {
	if err := s.ctl.Flush(); err != nil {
		return nil, err
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			s.sent.Add(int64(n))
			if _, werr := s.w.Write(buf[:n]); werr != nil {
				return nil, werr
			}
		}
		if errors.Is(err, io.EOF) {
			give(s.w.Header(), stdhttp.TrailerPrefix, &resp.Trailer)
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
		if resp.Body.Buffered() == 0 {
			if ferr := s.ctl.Flush(); ferr != nil {
				return nil, ferr
			}
		}
	}
}

const bufferSize = 16 << 10 // of a frame's content

// buffers are lent to streams while a body passes.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Received and Sent count the request's bytes, heads before compression.
func (s *Stream) Received() int64 { return s.received.Load() }

// Sent is the number of bytes of the response.
func (s *Stream) Sent() int64 { return s.sent.Load() }

// Reusable implements the proxy's idea of a client: a stream is for one request.
func (s *Stream) Reusable() bool { return false }

// Partial reports that there is a request.
func (s *Stream) Partial() bool { return true }

// Read implements stream.Stream; a stream is read by its request's body.
func (s *Stream) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Write implements stream.Stream.
func (s *Stream) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// CloseWrite implements stream.Stream: the response's end is the stream's.
func (s *Stream) CloseWrite() error { return nil }

// Close implements stream.Stream.
func (s *Stream) Close() error { return nil }

// Reset ends the stream; the client learns that it was not in order.
func (s *Stream) Reset() {
	s.broken.Store(true)
	_ = s.SetReadDeadline(stream.Past)
	_ = s.SetWriteDeadline(stream.Past)
}

// SetReadDeadline ends a read of the request's body that waits.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return net.ErrClosed
	}
	return s.ctl.SetReadDeadline(t)
}

// SetWriteDeadline ends a write of the response that waits.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return net.ErrClosed
	}
	return s.ctl.SetWriteDeadline(t)
}

// end gives w back.
func (s *Stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}
