package h2

import (
	"context"
	"errors"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// request takes a header section from a client.
func (c *conn) request(f *http2.MetaHeadersFrame) error {
	if s := c.stream(f.StreamID); s != nil {
		return s.moreHeaders()
	}
	if f.StreamID%2 == 0 {
		return connErrorf(http2.ErrCodeProtocol, "client opened stream %d", f.StreamID)
	}
	if !c.unknown(f.StreamID) {
		if c.wasReset(f.StreamID) {
			return nil // trailers that were on their way
		}
		return connErrorf(http2.ErrCodeStreamClosed, "HEADERS on the closed stream %d", f.StreamID)
	}
	s, err := c.newIncoming(f)
	if s == nil {
		return err
	}
	req, status, err := parseRequest(f)
	switch {
	case err != nil:
		return err
	case f.StreamEnded():
		s.peerEnded()
	}
	if status != 0 {
		return (&responder{s}).Reject(status)
	}
	go c.newHandling(s, req).run()
	return nil
}

// newIncoming takes a stream on; it returns none when the stream is refused.
func (c *conn) newIncoming(f *http2.MetaHeadersFrame) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seenID = f.StreamID
	if c.away || c.err != nil { // the client knows from GOAWAY
		c.ignored.add(f.StreamID)
		return nil, nil
	}
	c.lastID = f.StreamID
	if c.handlers >= 2*c.maxStreams {
		// Reset streams whose destinations still take what had arrived: the others
		// of the connection must not suffer for it.
		return nil, streamErrorf(f.StreamID, http2.ErrCodeRefusedStream, "streams are reset faster than they can be given up")
	}
	if len(c.streams) >= c.maxStreams {
		return nil, streamErrorf(f.StreamID, http2.ErrCodeRefusedStream, "%d streams are open", c.maxStreams)
	}
	s := newStream(c, f.StreamID)
	s.begun = time.Now()
	c.streams[s.id] = s
	c.lookSoon()
	c.total++
	return s, nil
}

// parseRequest reads a CONNECT. status is not 0 when the answer is certain.
func parseRequest(f *http2.MetaHeadersFrame) (req hbone.Request, status int, err error) {
	if f.Truncated {
		return req, 431, nil
	}
	if f.PseudoValue("method") != "CONNECT" {
		return req, 400, nil
	}
	for _, p := range f.PseudoFields() {
		switch p.Name {
		case ":method":
		case ":authority":
			req.Authority = p.Value
		default: // :scheme, :path, :protocol (RFC 9113 §8.5; RFC 8441 is not offered)
			return req, 0, streamErrorf(f.StreamID, http2.ErrCodeProtocol, "CONNECT with %s", p.Name)
		}
	}
	if req.Authority == "" {
		return req, 400, nil
	}
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "baggage":
			req.Header.Baggage = h.Value
		case "forwarded":
			req.Header.Forwarded = h.Value
		case "traceparent":
			req.Header.Traceparent = h.Value
		case "x-forwarded-network":
			req.Header.Network = h.Value
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return req, 0, streamErrorf(f.StreamID, http2.ErrCodeProtocol, "connection-specific header %s", h.Name)
		default:
			req.Header.Extra = append(req.Header.Extra, hbone.Field{Name: h.Name, Value: h.Value})
		}
	}
	return req, 0, nil
}

// handling is one CONNECT and its handler.
type handling struct {
	s      *stream
	ctx    context.Context
	cancel context.CancelFunc
	in     hbone.Incoming
}

// newHandling prepares what the handler of a CONNECT is given. It is apart from
// run so that a handler begins with a small stack.
func (c *conn) newHandling(s *stream, req hbone.Request) *handling {
	h := &handling{s: s, in: c.incoming}
	h.in.Request, h.in.Responder = req, &responder{s}
	h.ctx, h.cancel = context.WithCancel(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers++
	if s.err == nil {
		s.cancel = h.cancel
	} else {
		h.cancel()
	}
	return h
}

// run runs the handler.
func (h *handling) run() {
	defer h.cancel()
	c := h.s.c
	c.handler(h.ctx, &h.in)
	h.s.finish()
	c.mu.Lock()
	c.handlers--
	c.mu.Unlock()
}

// finish gives up a stream whose handler has returned.
func (s *stream) finish() {
	s.c.mu.Lock()
	answered := s.answered
	s.c.mu.Unlock()
	if !answered {
		_ = (&responder{s}).Reject(503)
	}
	_ = s.Close()
}

// responder answers one CONNECT.
type responder struct{ s *stream }

// errAnswered is what a second answer gets.
var errAnswered = errors.New("CONNECT has been answered already")

// Accept implements hbone.Responder.
func (r *responder) Accept(resp hbone.Response) (hbone.Stream, error) {
	s, c := r.s, r.s.c
	fields := []hpack.HeaderField{{Name: ":status", Value: "200"}}
	if resp.Baggage != "" {
		fields = append(fields, hpack.HeaderField{Name: "baggage", Value: resp.Baggage})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.claim(); err != nil {
		return nil, err
	}
	s.cancel = nil // from here on the stream itself tells how it ends
	c.offences.give(1)
	c.encode(fields)
	c.ctl = appendHeaders(c.ctl, s.id, c.encBuf.Bytes(), false, c.peerFrame)
	c.flush(c.controls)
	if s.err != nil {
		return nil, s.reasonFor("accept stream", s.err)
	}
	return s, nil
}

// Reject implements hbone.Responder.
func (r *responder) Reject(status int) error {
	s, c := r.s, r.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.claim(); err != nil {
		return err
	}
	c.encode([]hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}})
	c.ctl = appendHeaders(c.ctl, s.id, c.encBuf.Bytes(), true, c.peerFrame)
	if !s.recvDone { // the client need not end a request that has its answer (RFC 9113 §8.1)
		c.ctl = appendReset(c.ctl, s.id, http2.ErrCodeNo)
		c.ignored.add(s.id)
	}
	s.sendDone, s.recvDone = true, true
	s.err = &hbone.ResetError{Code: hbone.NoError}
	c.remove(s)
	c.kick()
	return nil
}

// claim makes the caller the one who answers. c.mu is held.
func (s *stream) claim() error {
	if s.err != nil {
		return s.reasonFor("answer stream", s.err)
	}
	if s.answered {
		return errAnswered
	}
	s.answered = true
	return nil
}
