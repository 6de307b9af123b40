// Package logging writes log lines in upstream's two shapes, filtered by levels
// that may change while the program runs, through a writer that never blocks.
//
//	slog.Logger ─▶ handler ─┐                ┌─ Writer ──────┐
//	                        ├─▶ Line ─▶ line │ bounded buffer │─▶ stdout, however slow
//	accesslog.Logger ───────┘                └─ drops, counts ┘
//
//	plain  2026-08-01T12:00:00.123456Z<TAB>info<TAB>scope<TAB>message<TAB>key=value key="two words"
//	json   {"level":"info","time":"2026-08-01T12:00:00.123456Z","scope":"scope","message":"…","key":"value"}
//
// One call writes one line whatever the values contain: control characters are
// escaped. Everything here is safe for concurrent use except a Line.
package logging

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Levels beyond slog's own.
const (
	LevelTrace = slog.LevelDebug - 4
	LevelOff   = slog.Level(1 << 20) // above everything
)

// Levels holds the level of every scope. The zero value is not usable.
type Levels struct {
	initial filter

	mu      sync.Mutex
	current filter
	vars    map[string]*slog.LevelVar // of scopes in use
}

// filter is a parsed filter. A scope's level is that of its longest prefix among
// scopes, cut at "::", "/" or ".", or else base.
type filter struct {
	base   slog.Level
	scopes map[string]slog.Level
}

// NewLevels parses a filter in the manner of RUST_LOG: "info",
// "info,access=debug", "warn,proxy::inbound=trace". Levels are trace, debug, info,
// warn, error and off. An empty filter is "info".
func NewLevels(text string) (*Levels, error) {
	f := filter{base: slog.LevelInfo, scopes: map[string]slog.Level{}}
	if err := f.apply(text); err != nil {
		return nil, err
	}
	return &Levels{initial: f, current: f.clone(), vars: map[string]*slog.LevelVar{}}, nil
}

// Set applies a filter on top of the levels in force. A filter with an error
// changes nothing.
func (l *Levels) Set(text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.current.clone()
	if err := next.apply(text); err != nil {
		return err
	}
	l.useLocked(next)
	return nil
}

// Reset returns to the levels given to NewLevels.
func (l *Levels) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.useLocked(l.initial.clone())
}

// String returns the filter in force.
func (l *Levels) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current.String()
}

// Var returns the level of a scope, which follows Set and Reset. Hot paths keep it.
func (l *Levels) Var(scope string) *slog.LevelVar {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.vars[scope]
	if v == nil {
		v = new(slog.LevelVar)
		v.Set(l.current.level(scope))
		l.vars[scope] = v
	}
	return v
}

// Enabled reports whether scope logs at level.
func (l *Levels) Enabled(scope string, level slog.Level) bool { return level >= l.Var(scope).Level() }

func (l *Levels) useLocked(f filter) {
	l.current = f
	for scope, v := range l.vars {
		v.Set(f.level(scope))
	}
}

func (f filter) clone() filter { return filter{f.base, maps.Clone(f.scopes)} }

// apply parses text into f, whose map it changes.
func (f *filter) apply(text string) error {
	for _, item := range strings.Split(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		scope, word, found := strings.Cut(item, "=")
		if !found {
			scope, word = "", item
		}
		level, err := ParseLevel(word)
		if err != nil {
			return fmt.Errorf("log filter %q: %w", item, err)
		}
		if found && !validScope(scope) {
			return fmt.Errorf("log filter %q: %q is no scope name", item, scope)
		}
		if !found {
			f.base = level
		} else {
			f.scopes[scope] = level
		}
	}
	return nil
}

// validScope accepts names of letters, digits and separators.
func validScope(s string) bool {
	ok := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-:./", r)
	}
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0
}

func (f filter) level(scope string) slog.Level {
	for s := scope; s != ""; s = parent(s) {
		if level, ok := f.scopes[s]; ok {
			return level
		}
	}
	return f.base
}

// parent cuts the last part off a scope's name.
func parent(s string) string {
	i := strings.LastIndexAny(s, ":/.")
	return strings.TrimRight(s[:max(i, 0)], ":/.")
}

// String returns the filter in the form that apply parses.
func (f filter) String() string {
	var b strings.Builder
	b.WriteString(LevelName(f.base))
	for _, scope := range slices.Sorted(maps.Keys(f.scopes)) {
		fmt.Fprintf(&b, ",%s=%s", scope, LevelName(f.scopes[scope]))
	}
	return b.String()
}

// ParseLevel parses a level's name, in any case.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "trace":
		return LevelTrace, nil
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "off", "none":
		return LevelOff, nil
	}
	return 0, fmt.Errorf("unknown level %q, want trace, debug, info, warn, error or off", s)
}

// LevelName returns the name of the highest named level that is not above level.
func LevelName(level slog.Level) string {
	switch {
	case level >= LevelOff:
		return "off"
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warn"
	case level >= slog.LevelInfo:
		return "info"
	case level >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}
