package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// ScopeKey is the attribute that names a logger's scope.
const ScopeKey = "scope"

// DefaultScope is the scope of loggers that name none.
const DefaultScope = "app"

// ParseFormat parses LOG_FORMAT: "", "plain" or "json".
func ParseFormat(s string) (Format, error) {
	switch strings.ToLower(s) {
	case "", "plain":
		return Plain, nil
	case "json":
		return JSON, nil
	}
	return Plain, fmt.Errorf("log format %q: want plain or json", s)
}

// Scope returns log for one part of the program; its lines carry the scope's name
// and obey the scope's level.
func Scope(log *slog.Logger, name string) *slog.Logger { return log.With(ScopeKey, name) }

// NewHandler returns a slog handler that writes each record to out by one Write.
// out must be safe for concurrent use, as a *Writer is.
func NewHandler(out io.Writer, format Format, levels *Levels) slog.Handler {
	return NewHandlerTo(out, format, levels, nil)
}

// NewHandlerTo is NewHandler with a copy of every record to sink, nil for none.
func NewHandlerTo(out io.Writer, format Format, levels *Levels, sink Sink) slog.Handler {
	return &handler{out: out, format: format, levels: levels, sink: sink, scope: DefaultScope, level: levels.Var(DefaultScope), lines: newBuffers()}
}

type handler struct {
	out    io.Writer
	format Format
	levels *Levels
	sink   Sink // nil = none
	scope  string
	level  *slog.LevelVar
	prefix string // of open groups, with their dots
	attrs  []slog.Attr
	lines  *sync.Pool
}

// newBuffers returns a pool of line buffers, *[]byte.
func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	buf := h.lines.Get().(*[]byte)
	line := Begin(*buf, h.format, r.Time, r.Level, h.scope, r.Message)
	line.CopyTo(h.sink, r.Time, r.Level, h.scope, r.Message)
	for _, a := range h.attrs {
		addAttr(&line, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		addAttr(&line, h.prefix, a)
		return true
	})
	*buf = line.End()
	_, err := h.out.Write(*buf)
	if cap(*buf) <= 16<<10 {
		h.lines.Put(buf)
	}
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		if h.prefix == "" && a.Key == ScopeKey {
			next.scope = a.Value.String()
			next.level = h.levels.Var(next.scope)
			continue
		}
		a.Key = h.prefix + a.Key
		next.attrs = append(next.attrs, a)
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

// addAttr adds one attribute; groups are flattened to "group.key".
func addAttr(line *Line, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			addAttr(line, prefix, member)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	addValue(line, prefix+a.Key, v)
}

func addValue(line *Line, key string, v slog.Value) {
	switch v.Kind() {
	case slog.KindString:
		line.Word(key, v.String())
	case slog.KindUint64:
		line.Uint(key, v.Uint64())
	case slog.KindInt64:
		line.Int(key, v.Int64())
	case slog.KindBool:
		line.Bool(key, v.Bool())
	case slog.KindFloat64:
		line.Word(key, strconv.FormatFloat(v.Float64(), 'g', -1, 64))
	case slog.KindDuration:
		line.Word(key, v.Duration().String())
	case slog.KindTime:
		line.Word(key, v.Time().UTC().Format(time.RFC3339Nano))
	default:
		addAny(line, key, v.Any())
	}
}

// addAny adds what slog has no kind for, the common ones without reflection.
func addAny(line *Line, key string, v any) {
	switch v := v.(type) {
	case netip.AddrPort:
		line.Addr(key, v)
	case netip.Addr:
		line.Word(key, v.String())
	case mesh.Identity:
		line.Word(key, v.String())
	case error:
		line.Text(key, errorText(v))
	case []byte:
		line.Text(key, string(v))
	default:
		line.Word(key, fmt.Sprint(v))
	}
}

// errorText is err.Error(), but a nil pointer in an error must not end the
// program just because it was logged.
func errorText(err error) (text string) {
	defer func() {
		if r := recover(); r != nil {
			text = fmt.Sprintf("!PANIC in %T.Error: %v", err, r)
		}
	}()
	return err.Error()
}
