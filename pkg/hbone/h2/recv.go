package h2

import (
	"errors"
	"io"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// readLoop reads until the connection ends.
func (c *conn) readLoop() error {
	for {
		if err := c.t.Wait(); err != nil {
			return err
		}
		if err := c.readBatch(); err != nil {
			return err
		}
	}
}

// readBatch handles what has arrived, and then sends what that gave rise to.
func (c *conn) readBatch() error {
	var err error
	c.bufs, err = c.t.Records(c.bufs[:0])
	if len(c.bufs) > 0 {
		c.heard.Store(time.Now().UnixNano())
		err = errors.Join(c.consumeAll(c.bufs), err)
	}
	clear(c.bufs)
	if cap(c.bufs) > 64 {
		c.bufs = nil
	}
	c.wake()
	return err
}

// consumeAll parses what has arrived and delivers it.
func (c *conn) consumeAll(bufs [][]byte) error {
	defer c.deliverLate()
	for _, p := range bufs {
		if err := c.consume(p); err != nil {
			return err
		}
	}
	return nil
}

// arrival is DATA of one stream that has arrived and is delivered together, with
// one write to its socket.
type arrival struct {
	s   *stream
	vec [][]byte
}

// maxPieces is how many pieces one write to a socket takes.
const maxPieces = 64

// arrive takes a part of a DATA frame.
func (c *conn) arrive(s *stream, p []byte) {
	if c.late.s != s || len(c.late.vec) == maxPieces {
		c.deliverLate()
	}
	c.late.s = s
	c.late.vec = append(c.late.vec, p)
}

// deliverLate delivers what has arrived. It comes before anything that ends a
// stream, and before the buffers are read into again.
func (c *conn) deliverLate() {
	if c.late.s == nil {
		return
	}
	c.late.s.deliver(c.late.vec)
	c.late.s = nil
	clear(c.late.vec)
	c.late.vec = c.late.vec[:0]
}

// wake sends what is queued, in another goroutine.
func (c *conn) wake() {
	c.mu.Lock()
	c.kick()
	c.mu.Unlock()
}

// reset turns a stream's error into RST_STREAM; other errors end the connection.
func (c *conn) reset(err error) error {
	if err == nil {
		if c.controlFlood() {
			return calmErrorf(AbuseUnread, "too many control frames to answer")
		}
		return nil
	}
	se, ok := errors.AsType[*streamError](err)
	if !ok {
		return err
	}
	c.deliverLate()
	if s := c.stream(se.id); s != nil {
		s.Reset(hbone.Code(se.code))
	} else {
		c.mu.Lock()
		c.ctl = appendReset(c.ctl, se.id, se.code)
		c.ignored.add(se.id)
		c.mu.Unlock()
	}
	return c.abused(AbuseErrors, 1)
}

// controlFlood reports whether the peer makes us answer faster than it reads.
func (c *conn) controlFlood() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ctl) > maxControlQueue
}

// malformed translates an error of the framer.
func (c *conn) malformed(err error) error {
	var ce http2.ConnectionError
	var se http2.StreamError
	switch {
	case errors.As(err, &se):
		if c.unknown(se.StreamID) {
			c.noteNewest(se.StreamID)
		}
		return streamErrorf(se.StreamID, se.Code, "malformed %v", c.parser.cur.kind)
	case errors.As(err, &ce):
		return connErrorf(http2.ErrCode(ce), "malformed %v", c.parser.cur.kind)
	case errors.Is(err, http2.ErrFrameTooLarge):
		return connErrorf(http2.ErrCodeFrameSize, "%v too large", c.parser.cur.kind)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return connErrorf(http2.ErrCodeFrameSize, "%v too short", c.parser.cur.kind)
	}
	return connErrorf(http2.ErrCodeProtocol, "%v", err)
}

// stream returns the open stream with that number, nil if there is none.
func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// unknown reports whether a stream of that number has never been opened.
func (c *conn) unknown(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.neverOpened(id)
}

// noteNewest counts a stream as opened, at a server.
func (c *conn) noteNewest(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.client && id%2 == 1 {
		c.lastID, c.seenID = max(c.lastID, id), max(c.seenID, id)
	}
}

// wasReset reports whether we have reset that stream a short while ago.
func (c *conn) wasReset(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ignored.has(id)
}

// creditConn lets the peer send as much more on the connection.
func (c *conn) creditConn(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if more := c.window.consume(n, c.shortest(), c.budget); more > 0 {
		c.ctl = appendWindowUpdate(c.ctl, 0, more)
	}
}

// beginData accounts for a DATA frame and finds its stream.
func (c *conn) beginData(h frameHeader) error {
	ps := &c.parser
	ps.data, ps.padding, ps.padded = nil, 0, h.flags.Has(http2.FlagDataPadded)
	if h.id == 0 {
		return connErrorf(http2.ErrCodeProtocol, "DATA on stream 0")
	}
	if ps.padded && h.length == 0 {
		return connErrorf(http2.ErrCodeFrameSize, "padded DATA without pad length")
	}
	c.mu.Lock()
	fits := c.window.receive(h.length)
	s := c.streams[h.id]
	over := s != nil && s.recvDone
	c.mu.Unlock()
	switch {
	case !fits:
		return connErrorf(http2.ErrCodeFlowControl, "connection window exceeded")
	case over:
		return streamErrorf(h.id, http2.ErrCodeStreamClosed, "DATA after END_STREAM")
	case s == nil && c.unknown(h.id):
		return connErrorf(http2.ErrCodeProtocol, "DATA before HEADERS")
	case s == nil && !c.wasReset(h.id):
		return streamErrorf(h.id, http2.ErrCodeStreamClosed, "DATA on a closed stream")
	case s == nil:
		return nil
	}
	return c.admit(s, h)
}

// admit takes a DATA frame off its stream's window.
func (c *conn) admit(s *stream, h frameHeader) error {
	if c.client && !s.hasAnswer() {
		return streamErrorf(h.id, http2.ErrCodeProtocol, "DATA before the response")
	}
	s.rmu.Lock()
	fits := s.window.receive(h.length)
	s.rmu.Unlock()
	if !fits {
		return streamErrorf(h.id, http2.ErrCodeFlowControl, "stream window exceeded")
	}
	if h.length == 0 && !h.flags.Has(http2.FlagDataEndStream) {
		return c.abused(AbuseEmpty, 1)
	}
	c.parser.data = s
	return nil
}

// dataPart passes a part of a DATA frame on. Without a stream only the
// connection's window is credited.
func (c *conn) dataPart(p []byte) error {
	ps := &c.parser
	if ps.padded && len(p) > 0 {
		ps.padded = false
		ps.padding = int(p[0])
		if ps.padding >= ps.cur.length {
			return connErrorf(http2.ErrCodeProtocol, "more padding than payload")
		}
		c.discardData(1)
		p = p[1:]
	}
	// Of the part and what is left, the last padding bytes are padding.
	body := max(0, min(len(p), len(p)+ps.left-ps.padding))
	if ps.data == nil {
		body = 0
	} else if body > 0 {
		c.arrive(ps.data, p[:body])
	}
	if body < len(p) {
		c.discardData(len(p) - body)
	}
	return nil
}

// discardData credits bytes of a DATA frame that nobody gets.
func (c *conn) discardData(n int) {
	c.creditConn(n)
	if s := c.parser.data; s != nil {
		s.rmu.Lock()
		s.creditStream(n)
		s.rmu.Unlock()
	}
}

// endData ends a stream's input if the frame says so.
func (c *conn) endData(h frameHeader) error {
	s := c.parser.data
	c.parser.data = nil
	if s != nil && h.flags.Has(http2.FlagDataEndStream) {
		c.deliverLate()
		s.peerEnded()
	}
	return nil
}

// peerEnded takes the peer's END_STREAM.
func (s *stream) peerEnded() {
	s.endInput(nil)
	s.c.mu.Lock()
	s.recvDone = true
	s.ended()
	s.c.mu.Unlock()
}

// handle acts on every frame but DATA.
func (c *conn) handle(f http2.Frame) error {
	if err := c.meter(f); err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if c.client {
			return c.response(f)
		}
		return c.request(f)
	case *http2.SettingsFrame:
		return c.peerSettings(f)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.peerReset(f)
	case *http2.PingFrame:
		return c.ping(f)
	case *http2.GoAwayFrame:
		c.goAway(f)
	}
	return nil // PRIORITY: ignored (RFC 9113 §5.3.2)
}

func (c *conn) ping(f *http2.PingFrame) error {
	if f.IsAck() {
		c.pong(f.Data)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctl = appendPing(c.ctl, true, f.Data)
	return nil
}

// peerSettings applies the peer's settings and acknowledges them.
func (c *conn) peerSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return c.malformed(err)
		}
		return c.applySetting(s)
	})
	if err != nil {
		return err
	}
	c.peerSet = true
	c.ctl = appendFrame(c.ctl, http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	return nil
}

// applySetting is called with c.mu held.
func (c *conn) applySetting(s http2.Setting) error {
	switch s.ID {
	case http2.SettingInitialWindowSize:
		return c.resizeWindows(int64(s.Val))
	case http2.SettingMaxFrameSize:
		c.peerFrame = int(s.Val)
	case http2.SettingMaxConcurrentStreams:
		c.peerStreams = int(min(s.Val, 1<<30))
	case http2.SettingHeaderTableSize:
		c.enc.SetMaxDynamicTableSize(min(s.Val, 4096))
	case http2.SettingMaxHeaderListSize:
		c.peerHeaders = int(min(s.Val, 1<<30))
	case http2.SettingEnablePush:
		if c.client && s.Val != 0 {
			return connErrorf(http2.ErrCodeProtocol, "server sent ENABLE_PUSH")
		}
	}
	return nil
}

// resizeWindows changes every stream's window by as much as the initial window
// changes (RFC 9113 §6.9.2). c.mu is held.
func (c *conn) resizeWindows(size int64) error {
	more := size - c.peerWindow
	c.peerWindow = size
	for _, s := range c.streams {
		s.sendWin += more
		if s.sendWin > maxWindow {
			return connErrorf(http2.ErrCodeFlowControl, "stream window over 2^31-1")
		}
		s.cond.Broadcast()
	}
	return nil
}

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.sendWin += n; c.sendWin > maxWindow {
			return connErrorf(http2.ErrCodeFlowControl, "connection window over 2^31-1")
		}
		c.unblock()
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.neverOpened(f.StreamID) {
			return connErrorf(http2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
		}
		return nil
	}
	if s.sendWin += n; s.sendWin > maxWindow {
		return streamErrorf(f.StreamID, http2.ErrCodeFlowControl, "stream window over 2^31-1")
	}
	s.cond.Broadcast()
	return nil
}

// neverOpened is unknown with c.mu held.
func (c *conn) neverOpened(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.seenID
}

// peerReset takes RST_STREAM.
func (c *conn) peerReset(f *http2.RSTStreamFrame) error {
	s := c.stream(f.StreamID)
	if s == nil {
		if c.unknown(f.StreamID) {
			return connErrorf(http2.ErrCodeProtocol, "RST_STREAM on an idle stream")
		}
		return nil
	}
	early := !c.client && !s.hasAnswer() && time.Since(s.begun) < hasty
	s.abort(&hbone.ResetError{Code: hbone.Code(f.ErrCode), Remote: true})
	if early {
		return c.abused(AbuseResets, 2) // a request that costs the client nothing (CVE-2023-44487)
	}
	return nil
}

// hasAnswer reports whether the CONNECT has been answered.
func (s *stream) hasAnswer() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.answered
}

// goAway takes GOAWAY: no new streams, and those that the peer did not take on
// have to go elsewhere.
func (c *conn) goAway(f *http2.GoAwayFrame) {
	c.mu.Lock()
	c.away = true
	var refused []*stream
	if c.client {
		for id, s := range c.streams {
			if id > f.LastStreamID {
				refused = append(refused, s)
			}
		}
	}
	c.finishIfIdle()
	c.mu.Unlock()
	for _, s := range refused {
		s.abort(reason.New(reason.Draining, "open stream", c.t.RemoteAddr().String(), errRefused))
	}
	if c.onLeaving != nil {
		c.onLeaving()
	}
}

// errRefused says that the peer has not processed a request: it may be sent again.
var errRefused = errors.New("stream refused")
