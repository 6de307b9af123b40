package h2

import (
	"golang.org/x/net/http2"
)

// parser cuts the input into frames. The payload of DATA is passed on as it
// arrives, however large the frame; other frames are collected whole, and a
// header section with all its CONTINUATION frames.
type parser struct {
	preface  bool // the client's preface is still to come
	settled  bool // the first frame, SETTINGS, has been seen
	greeting int  // bytes of the preface seen

	head  [frameHeaderLen]byte
	headN int // bytes in head
	cur   frameHeader
	left  int // bytes of the current payload still to come

	inData  bool
	data    *stream // who gets the current DATA; nil: nobody
	padded  bool    // the pad length is still to come
	padding int     // bytes at the end that are padding

	skip          bool   // the current frame is of an unknown type
	held          []byte // the frame, or header section, being collected
	section       uint32 // stream whose header section is incomplete; 0 none
	continuations int
}

// consume parses p, all of it.
func (c *conn) consume(p []byte) error {
	ps := &c.parser
	if ps.preface {
		var err error
		if p, err = ps.greet(p); err != nil {
			return err
		}
	}
	for len(p) > 0 {
		if ps.headN < frameHeaderLen {
			n := copy(ps.head[ps.headN:], p)
			ps.headN += n
			p = p[n:]
			if ps.headN < frameHeaderLen {
				return nil
			}
			if err := c.beginFrame(); err != nil {
				return err
			}
		}
		n := min(len(p), ps.left)
		if err := c.payload(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// greet checks the client's preface and returns what follows it.
func (ps *parser) greet(p []byte) ([]byte, error) {
	n := min(len(p), len(preface)-ps.greeting)
	if string(p[:n]) != preface[ps.greeting:ps.greeting+n] {
		return nil, connErrorf(http2.ErrCodeProtocol, "not an HTTP/2 preface")
	}
	ps.greeting += n
	ps.preface = ps.greeting < len(preface)
	return p[n:], nil
}

// beginFrame looks at the header of a frame.
func (c *conn) beginFrame() error {
	ps := &c.parser
	ps.cur = parseFrameHeader(ps.head[:])
	ps.left = ps.cur.length
	if err := c.checkHeader(ps.cur); err != nil {
		return err
	}
	if ps.cur.kind == http2.FrameData {
		ps.inData = true
		if err := c.reset(c.beginData(ps.cur)); err != nil {
			return err
		}
	} else if ps.cur.kind > http2.FrameContinuation {
		ps.skip = true
		if err := c.meterControl(1 + float64(ps.left)/skippedPart); err != nil {
			return err
		}
	} else {
		ps.held = append(ps.held, ps.head[:]...)
	}
	if ps.left == 0 {
		return c.endFrame()
	}
	return nil
}

// checkHeader refuses frames that are too large, or out of place.
func (c *conn) checkHeader(h frameHeader) error {
	ps := &c.parser
	if h.length > c.settings.MaxFrameSize {
		return connErrorf(http2.ErrCodeFrameSize, "frame of %d bytes", h.length)
	}
	if !ps.settled {
		if h.kind != http2.FrameSettings || h.flags.Has(http2.FlagSettingsAck) {
			return connErrorf(http2.ErrCodeProtocol, "first frame is %v, not SETTINGS", h.kind)
		}
		ps.settled = true
	}
	if ps.section != 0 && (h.kind != http2.FrameContinuation || h.id != ps.section) {
		return connErrorf(http2.ErrCodeProtocol, "%v inside the header section of stream %d", h.kind, ps.section)
	}
	limit := h.length
	switch h.kind {
	case http2.FrameSettings:
		limit = maxSettings
	case http2.FrameGoAway:
		limit = maxGoAway
	case http2.FramePing, http2.FramePriority, http2.FrameRSTStream, http2.FrameWindowUpdate:
		limit = 8 // the exact length is checked when the frame is parsed
		if h.length > limit {
			return connErrorf(http2.ErrCodeFrameSize, "%v of %d bytes", h.kind, h.length)
		}
	case http2.FramePushPromise:
		return connErrorf(http2.ErrCodeProtocol, "PUSH_PROMISE")
	case http2.FrameHeaders, http2.FrameContinuation:
		return c.checkSection(h)
	}
	if h.length > limit {
		return calmErrorf(AbuseControl, "%v of %d bytes", h.kind, h.length)
	}
	return nil
}

// checkSection bounds a header section, before any of it is kept.
func (c *conn) checkSection(h frameHeader) error {
	ps := &c.parser
	if h.kind == http2.FrameContinuation {
		if ps.section == 0 {
			return connErrorf(http2.ErrCodeProtocol, "CONTINUATION without HEADERS")
		}
		if ps.continuations++; ps.continuations > maxContinuations {
			return calmErrorf(AbuseHeaders, "header section in more than %d frames", maxContinuations)
		}
	}
	if len(ps.held)+h.length > 2*c.settings.MaxHeaderList {
		return calmErrorf(AbuseHeaders, "header section of more than %d bytes", len(ps.held)+h.length)
	}
	return nil
}

// payload takes a part of the current frame's payload; p may be empty.
func (c *conn) payload(p []byte) error {
	ps := &c.parser
	ps.left -= len(p)
	if ps.inData {
		if err := c.reset(c.dataPart(p)); err != nil {
			return err
		}
	} else if !ps.skip {
		ps.held = append(ps.held, p...)
	}
	if ps.left > 0 || ps.headN < frameHeaderLen {
		return nil
	}
	return c.endFrame()
}

// endFrame acts on a frame that is complete.
func (c *conn) endFrame() error {
	ps := &c.parser
	ps.headN = 0
	switch {
	case ps.inData:
		ps.inData = false
		return c.reset(c.endData(ps.cur))
	case ps.skip:
		ps.skip = false
		return nil
	}
	if ps.cur.kind == http2.FrameHeaders || ps.cur.kind == http2.FrameContinuation {
		if !ps.cur.flags.Has(http2.FlagHeadersEndHeaders) { // the same bit in both
			ps.section = ps.cur.id
			if ps.section == 0 {
				return connErrorf(http2.ErrCodeProtocol, "HEADERS on stream 0")
			}
			return nil
		}
		ps.section, ps.continuations = 0, 0
	}
	c.deliverLate()
	c.frame.Reset(ps.held)
	f, err := c.frames.ReadFrame()
	if cap(ps.held) > 4<<10 {
		defer func() { ps.held = nil }()
	} else {
		defer func() { ps.held = ps.held[:0] }()
	}
	if err != nil {
		return c.reset(c.malformed(err))
	}
	return c.reset(c.handle(f))
}
