package logging

import (
	"log/slog"
	"math"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Format is how lines look.
type Format uint8

// Formats.
const (
	Plain Format = iota
	JSON
)

const timeLayout = "2006-01-02T15:04:05.000000Z"

// Line builds one line in a buffer of the caller's. Calls in order: Begin, fields,
// End. It allocates only when the buffer is too small.
type Line struct {
	buf    []byte
	format Format
	fields bool
	copy   Entry // of the fields as values; nil for none
}

// Sink takes lines as values beside the text, for another kind of log. Its methods
// are called where the line is written and must not wait.
type Sink interface {
	// Entry begins one line. Its fields follow, and then End, once. A Sink that has
	// no room returns nil.
	Entry(at time.Time, level slog.Level, scope, message string) Entry
}

// Entry is a line on its way to a Sink.
type Entry interface {
	Text(key, value string)
	Int(key string, n int64)
	Bool(key string, b bool)
	End()
}

// CopyTo has the fields that follow go to a sink as well; nil for none.
func (l *Line) CopyTo(sink Sink, at time.Time, level slog.Level, scope, message string) {
	if sink != nil {
		l.copy = sink.Entry(at, level, scope, message)
	}
}

// Begin starts a line in buf[:0].
func Begin(buf []byte, format Format, at time.Time, level slog.Level, scope, message string) Line {
	l := Line{buf: buf[:0], format: format}
	if format == JSON {
		l.raw(`{"level":"`)
		l.raw(LevelName(level))
		l.raw(`","time":"`)
		l.buf = at.UTC().AppendFormat(l.buf, timeLayout)
		l.raw(`","scope":`)
		l.buf = appendJSON(l.buf, scope)
		l.raw(`,"message":`)
		l.buf = appendJSON(l.buf, message)
		return l
	}
	l.buf = at.UTC().AppendFormat(l.buf, timeLayout)
	l.raw("\t")
	l.raw(LevelName(level))
	l.raw("\t")
	l.buf = appendEscaped(l.buf, scope)
	l.raw("\t")
	l.buf = appendEscaped(l.buf, message)
	return l
}

// Text adds a string, quoted in both formats.
func (l *Line) Text(key, value string) {
	if l.copy != nil {
		l.copy.Text(key, value)
	}
	l.text(key, value)
}

func (l *Line) text(key, value string) {
	l.key(key)
	if l.format == JSON {
		l.buf = appendJSON(l.buf, value)
	} else {
		l.buf = strconv.AppendQuote(l.buf, value)
	}
}

// Word adds a string that is quoted in the plain format only when it must be.
func (l *Line) Word(key, value string) {
	if l.format == JSON || !bare(value) {
		l.Text(key, value)
		return
	}
	if l.copy != nil {
		l.copy.Text(key, value)
	}
	l.key(key)
	l.raw(value)
}

// Uint adds a number.
func (l *Line) Uint(key string, n uint64) {
	if l.copy != nil {
		l.copy.Int(key, int64(min(n, math.MaxInt64)))
	}
	l.key(key)
	l.buf = strconv.AppendUint(l.buf, n, 10)
}

// Int adds a number.
func (l *Line) Int(key string, n int64) {
	if l.copy != nil {
		l.copy.Int(key, n)
	}
	l.key(key)
	l.buf = strconv.AppendInt(l.buf, n, 10)
}

// Bool adds true or false.
func (l *Line) Bool(key string, b bool) {
	if l.copy != nil {
		l.copy.Bool(key, b)
	}
	l.key(key)
	l.buf = strconv.AppendBool(l.buf, b)
}

// Addr adds an address and port, or only the address when the port is 0.
func (l *Line) Addr(key string, a netip.AddrPort) {
	l.key(key)
	l.quote()
	start := len(l.buf)
	if a.Port() == 0 {
		l.buf = a.Addr().Unmap().AppendTo(l.buf)
	} else {
		l.buf = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).AppendTo(l.buf)
	}
	if l.copy != nil {
		l.copy.Text(key, string(l.buf[start:]))
	}
	l.quote()
}

// Identity adds an identity as its SPIFFE URI, quoted in both formats.
func (l *Line) Identity(key string, id mesh.Identity) {
	if !bare(id.TrustDomain) || !bare(id.Namespace) || !bare(id.ServiceAccount) {
		l.Text(key, id.String())
		return
	}
	if l.copy != nil {
		l.copy.Text(key, id.String())
	}
	l.key(key)
	l.raw(`"spiffe://`)
	l.raw(id.TrustDomain)
	l.raw("/ns/")
	l.raw(id.Namespace)
	l.raw("/sa/")
	l.raw(id.ServiceAccount)
	l.raw(`"`)
}

// Millis adds a duration as whole milliseconds: "12ms".
func (l *Line) Millis(key string, d time.Duration) {
	if l.copy != nil {
		l.copy.Text(key, strconv.FormatInt(d.Milliseconds(), 10)+"ms")
	}
	l.key(key)
	l.raw(`"`)
	l.buf = strconv.AppendInt(l.buf, d.Milliseconds(), 10)
	l.raw(`ms"`)
}

// End completes the line, with its newline, and returns it.
func (l *Line) End() []byte {
	if l.copy != nil {
		l.copy.End()
	}
	if l.format == JSON {
		l.raw("}")
	}
	l.raw("\n")
	return l.buf
}

func (l *Line) raw(s string) { l.buf = append(l.buf, s...) }

// quote adds a quotation mark that only JSON needs.
func (l *Line) quote() {
	if l.format == JSON {
		l.raw(`"`)
	}
}

// key starts a field.
func (l *Line) key(key string) {
	switch {
	case l.format == JSON:
		l.raw(",")
		l.buf = appendJSON(l.buf, key)
		l.raw(":")
		return
	case !l.fields:
		l.raw("\t")
		l.fields = true
	default:
		l.raw(" ")
	}
	if bare(key) {
		l.raw(key)
	} else {
		l.buf = strconv.AppendQuote(l.buf, key)
	}
	l.raw("=")
}

// bare reports whether s can stand in a plain line without quotes.
func bare(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == '"' || c == '=' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return s != ""
}

// appendEscaped appends s with whatever could end a line or a column escaped.
func appendEscaped(buf []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r >= ' ' && r < 0x7f, r >= 0xa0 && r != utf8.RuneError && strconv.IsPrint(r):
			buf = append(buf, s[i:i+size]...)
		default:
			quoted := strconv.AppendQuote(buf, s[i:i+size])
			buf = append(quoted[:len(buf)], quoted[len(buf)+1:len(quoted)-1]...)
		}
		i += size
	}
	return buf
}

const hex = "0123456789abcdef"

// appendJSON appends s as a JSON string (RFC 8259 §7). Invalid UTF-8 becomes
// U+FFFD; line separators that JavaScript dislikes are escaped.
func appendJSON(buf []byte, s string) []byte {
	buf = append(buf, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r > 0xa0 && r != utf8.RuneError && r != '\u2028' && r != '\u2029' {
			i += size
			continue
		}
		buf = append(buf, s[start:i]...)
		if r == '"' || r == '\\' {
			buf = append(buf, '\\', byte(r))
		} else {
			buf = append(buf, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		}
		i += size
		start = i
	}
	buf = append(buf, s[start:]...)
	return append(buf, '"')
}
