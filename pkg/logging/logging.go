// Package logging writes log lines in the shape of upstream's.
package logging

import (
	"context"
	"io"
	"log/slog"
)

// Format is how lines look.
type Format uint8

// Formats.
const (
	Plain Format = iota
	JSON
)

// ParseFormat parses LOG_FORMAT: "", "plain" or "json".
func ParseFormat(s string) (Format, error) { panic("skeleton") }

// Levels holds the level of every scope; it may change at any time.
type Levels struct{}

// NewLevels parses a filter such as "info,access=debug" (RUST_LOG).
func NewLevels(filter string) (*Levels, error) { panic("skeleton") }

// Set applies a filter on top of the present levels.
func (l *Levels) Set(filter string) error { panic("skeleton") }

// Reset returns to the levels of NewLevels.
func (l *Levels) Reset() {}

// String returns the filter in force.
func (l *Levels) String() string { panic("skeleton") }

// Enabled reports whether scope logs at level.
func (l *Levels) Enabled(scope string, level slog.Level) bool { panic("skeleton") }

// Writer is a bounded buffer in front of a slow writer. Write never blocks: what
// does not fit is dropped and counted.
type Writer struct{}

// NewWriter returns a writer that holds at most limit bytes; 0 = 1 MiB.
func NewWriter(out io.Writer, limit int) *Writer { panic("skeleton") }

// Write queues one line.
func (w *Writer) Write(line []byte) (int, error) { panic("skeleton") }

// Dropped returns how many lines did not fit so far.
func (w *Writer) Dropped() uint64 { panic("skeleton") }

// Run writes the lines out until ctx ends, then what is left for at most a second.
func (w *Writer) Run(ctx context.Context) error { panic("skeleton") }

// NewHandler returns a slog handler that writes whole lines to out. The attribute
// "scope" (see Scope) selects the level.
func NewHandler(out io.Writer, format Format, levels *Levels) slog.Handler { panic("skeleton") }

// Scope returns log for one part of the program; its lines carry the scope's name
// and obey the scope's level.
func Scope(log *slog.Logger, name string) *slog.Logger { return log.With("scope", name) }
