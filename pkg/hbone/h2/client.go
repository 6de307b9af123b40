package h2

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// reserveSlot promises room for one stream; false when there is none.
func (c *conn) reserveSlot(limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away || c.err != nil || c.load() >= min(limit, c.peerStreams) || c.suspect() {
		return false
	}
	c.slots++
	return true
}

// load counts the streams that are open or about to be. c.mu is held.
func (c *conn) load() int { return len(c.streams) + c.slots }

// crowded reports whether another connection to the same peer is worth having:
// nine tenths of the streams are in use, or streams queue for their turn.
func (c *conn) crowded(limit int) (full, slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load()*10 >= min(limit, c.peerStreams)*9, c.queueing > congested && len(c.streams) > 1
}

// open opens a stream in a slot that was reserved, and waits for the answer.
func (c *conn) open(ctx context.Context, req hbone.Request) (*stream, *hbone.Response, error) {
	s, err := c.startStream(req)
	if err != nil {
		return nil, nil, err
	}
	if err := c.awaitAnswer(ctx, s, req.Authority); err != nil {
		_ = s.Close() // the answer, and bytes behind it, may be here already
		return nil, nil, err
	}
	return s.outcome(req)
}

// What has become of a request without an answer: it may be sent elsewhere.
var (
	errLost   = errors.New("the connection ended before the answer")
	errSilent = errors.New("the peer is silent")
)

// probeAfter is how long an answer may take before the peer is asked whether it
// is there at all: an application that is slow to accept is no reason to leave.
const probeAfter = 100 * time.Millisecond

// awaitAnswer waits for the answer, or for the peer to fall silent.
func (c *conn) awaitAnswer(ctx context.Context, s *stream, subject string) error {
	ask := time.NewTimer(probeAfter)
	defer ask.Stop()
	for {
		select {
		case <-s.answer:
			return nil
		case <-s.done:
			return nil
		case <-ctx.Done():
			return giveUp(ctx, subject)
		case <-ask.C:
			if c.probe() {
				return reason.New(reason.Unresponsive, "open stream", c.t.RemoteAddr().String(), errSilent)
			}
			ask.Reset(suspectAfter / 4)
		}
	}
}

// startStream sends the CONNECT.
func (c *conn) startStream(req hbone.Request) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots--
	if c.err != nil || c.away || c.nextID > maxStreamID {
		c.away = true
		c.finishIfIdle()
		c.kick()
		return nil, reason.New(reason.Draining, "open stream", c.t.RemoteAddr().String(), errRefused)
	}
	s := newStream(c, c.nextID)
	s.answer = make(chan struct{})
	c.nextID += 2
	c.total++
	c.streams[s.id] = s
	c.lookSoon()
	if !c.encodeRequest(req) {
		s.err = reason.Newf(reason.BadRequest, "open stream", req.Authority, "header section larger than the peer takes")
		c.remove(s)
		return nil, s.err
	}
	c.ctl = appendHeaders(c.ctl, s.id, c.encBuf.Bytes(), false, c.peerFrame)
	c.flush(c.controls)
	return s, nil
}

// controls reports whether control frames wait. c.mu is held.
func (c *conn) controls() bool { return len(c.ctl) > 0 }

// encodeRequest encodes a CONNECT's header section, unless it is too large.
func (c *conn) encodeRequest(req hbone.Request) bool {
	h := req.Header
	fields := make([]hpack.HeaderField, 0, 8)
	fields = append(fields,
		hpack.HeaderField{Name: ":method", Value: "CONNECT"},
		hpack.HeaderField{Name: ":authority", Value: req.Authority})
	put := func(name, value string, unique bool) {
		if value != "" {
			fields = append(fields, hpack.HeaderField{Name: name, Value: value, Sensitive: unique})
		}
	}
	put("baggage", h.Baggage, false)
	put("forwarded", h.Forwarded, true)     // of this connection alone: keep it out of
	put("traceparent", h.Traceparent, true) // the compression table
	put("x-forwarded-network", h.Network, false)
	for _, f := range h.Extra {
		put(f.Name, f.Value, false)
	}
	return c.encode(fields)
}

// encode puts fields into c.encBuf. c.mu is held: sections must be sent in the
// order in which they were encoded.
func (c *conn) encode(fields []hpack.HeaderField) bool {
	size := 0
	for _, f := range fields {
		size += headerSize(f)
	}
	if c.peerHeaders > 0 && size > c.peerHeaders {
		return false
	}
	c.encBuf.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(f) // into a bytes.Buffer
	}
	return true
}

// outcome is what came of a CONNECT.
func (s *stream) outcome(req hbone.Request) (*stream, *hbone.Response, error) {
	s.c.mu.Lock()
	answered, resp, err := s.answered, s.resp, s.err
	lost := s.c.err != nil && s.c.peerSet
	s.c.mu.Unlock()
	switch {
	case answered && resp.Status == 200:
		return s, &resp, nil
	case answered:
		_ = s.Close()
		return nil, &resp, &hbone.StatusError{Status: resp.Status, Authority: req.Authority}
	case err == nil:
		err = errors.New("stream ended without a response")
	}
	err = s.reasonFor("open stream", err)
	if lost {
		err = fmt.Errorf("%w: %w", errLost, err)
	}
	return nil, nil, err
}

// giveUp is the error of an opener whose context has ended.
func giveUp(ctx context.Context, subject string) error {
	why := reason.DownstreamClosed
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		why = reason.ConnectTimeout
	}
	return reason.New(why, "open tunnel", subject, context.Cause(ctx))
}

// response takes the answer to a CONNECT.
func (c *conn) response(f *http2.MetaHeadersFrame) error {
	s := c.stream(f.StreamID)
	if s == nil {
		if c.unknown(f.StreamID) {
			return connErrorf(http2.ErrCodeProtocol, "HEADERS on an idle stream")
		}
		if c.wasReset(f.StreamID) {
			return nil
		}
		return streamErrorf(f.StreamID, http2.ErrCodeStreamClosed, "HEADERS on a closed stream")
	}
	status, err := strconv.Atoi(f.PseudoValue("status"))
	switch {
	case s.hasAnswer():
		return s.moreHeaders()
	case err != nil || status < 100 || status > 999 || len(f.PseudoFields()) != 1:
		return streamErrorf(s.id, http2.ErrCodeProtocol, "malformed response")
	case status < 200 && f.StreamEnded():
		return streamErrorf(s.id, http2.ErrCodeProtocol, "stream ended by an interim response")
	case status < 200:
		return nil
	}
	c.mu.Lock()
	s.answered = true
	s.resp.Status = status
	for _, h := range f.RegularFields() {
		if h.Name == "baggage" {
			s.resp.Baggage = h.Value
		}
	}
	c.mu.Unlock()
	if f.StreamEnded() {
		s.peerEnded()
	}
	close(s.answer)
	return nil
}

// moreHeaders refuses a second header section: a connected stream carries DATA
// only (RFC 9113 §8.5).
func (s *stream) moreHeaders() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.recvDone {
		return streamErrorf(s.id, http2.ErrCodeStreamClosed, "HEADERS after END_STREAM")
	}
	return streamErrorf(s.id, http2.ErrCodeProtocol, "HEADERS on a connected stream")
}
