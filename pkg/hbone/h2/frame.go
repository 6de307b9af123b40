package h2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Limits of RFC 9113 §6.5.2 and §5.1.1.
const (
	preface          = http2.ClientPreface
	defaultFrameSize = 16 << 10
	defaultWindow    = 1<<16 - 1
	maxWindow        = 1<<31 - 1
	maxStreamID      = 1<<31 - 1
)

// What a peer may make us keep or do before it counts as an attack.
const (
	maxControlQueue  = 256 << 10 // bytes of control frames that wait to be sent
	maxContinuations = 16        // CONTINUATION frames in one header section
	maxSettings      = 4 << 10   // bytes of one SETTINGS frame
	maxGoAway        = 16 << 10  // bytes of one GOAWAY frame
)

// frameHeader is the header of a frame as it was read.
type frameHeader struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	id     uint32
}

func parseFrameHeader(b []byte) frameHeader {
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   http2.FrameType(b[3]),
		flags:  http2.Flags(b[4]),
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// putFrameHeader writes a frame's header into b.
func putFrameHeader(b []byte, length int, kind http2.FrameType, flags http2.Flags, id uint32) {
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = byte(kind), byte(flags)
	binary.BigEndian.PutUint32(b[5:], id)
}

// appendFrame appends a whole frame.
func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) []byte {
	var h [frameHeaderLen]byte
	putFrameHeader(h[:], len(payload), kind, flags, id)
	return append(append(b, h[:]...), payload...)
}

func appendUint32Frame(b []byte, kind http2.FrameType, id, value uint32) []byte {
	return appendFrame(b, kind, 0, id, binary.BigEndian.AppendUint32(nil, value))
}

func appendWindowUpdate(b []byte, id uint32, n int) []byte {
	return appendUint32Frame(b, http2.FrameWindowUpdate, id, uint32(n))
}

func appendReset(b []byte, id uint32, code http2.ErrCode) []byte {
	return appendUint32Frame(b, http2.FrameRSTStream, id, uint32(code))
}

func appendPing(b []byte, ack bool, data [8]byte) []byte {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	return appendFrame(b, http2.FramePing, flags, 0, data[:])
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, debug string) []byte {
	p := binary.BigEndian.AppendUint32(nil, last)
	p = binary.BigEndian.AppendUint32(p, uint32(code))
	return appendFrame(b, http2.FrameGoAway, 0, 0, append(p, debug...))
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	var p []byte
	for _, s := range settings {
		p = binary.BigEndian.AppendUint16(p, uint16(s.ID))
		p = binary.BigEndian.AppendUint32(p, s.Val)
	}
	return appendFrame(b, http2.FrameSettings, 0, 0, p)
}

// appendHeaders appends a header section, in CONTINUATION frames where it is
// larger than a frame may be.
func appendHeaders(b []byte, id uint32, section []byte, end bool, frameSize int) []byte {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		part := section[:min(len(section), frameSize)]
		section = section[len(part):]
		if len(section) == 0 {
			return appendFrame(b, kind, flags|http2.FlagHeadersEndHeaders, id, part)
		}
		b = appendFrame(b, kind, flags, id, part)
		kind, flags = http2.FrameContinuation, 0
	}
}

// headerSize is a field's size as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
func headerSize(f hpack.HeaderField) int { return len(f.Name) + len(f.Value) + 32 }

// connError ends a connection with GOAWAY.
type connError struct {
	code  http2.ErrCode
	why   string
	abuse Abuse // of which there was too much; "" for an ordinary error
}

func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.why) }

// streamError ends one stream with RST_STREAM.
type streamError struct {
	id   uint32
	code http2.ErrCode
	why  string
}

func (e *streamError) Error() string { return fmt.Sprintf("stream %d: %v: %s", e.id, e.code, e.why) }

func connErrorf(code http2.ErrCode, format string, args ...any) error {
	return &connError{code: code, why: fmt.Sprintf(format, args...)}
}

func streamErrorf(id uint32, code http2.ErrCode, format string, args ...any) error {
	return &streamError{id, code, fmt.Sprintf(format, args...)}
}
