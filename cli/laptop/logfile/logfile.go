// Package logfile keeps the output of a process in a file of bounded size: when
// it is full it becomes NAME.1, replacing the one before, and a new one begins.
// Readers follow a file across that change.
//
// A Writer is safe for concurrent use. Reader functions hold nothing open when
// they return.
package logfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// DefaultSize is the size in bytes at which a file is turned over.
const DefaultSize = 8 << 20

// Writer appends to a file.
type Writer struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

// Open opens the file at path for appending; max is its size in bytes, 0 = DefaultSize.
func Open(path string, max int64) (*Writer, error) {
	if max <= 0 {
		max = DefaultSize
	}
	w := &Writer{path: path, max: max}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log file %s: %w", w.path, err)
	}
	w.f, w.size = f, st.Size()
	return nil
}

// Write appends p as a whole to one file. After Close it reports success and
// keeps nothing, so that a process that still writes is not disturbed.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return len(p), nil
	}
	if w.size > 0 && w.size+int64(len(p)) > w.max {
		if err := w.turn(); err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(p)
	w.size += int64(n)
	return n, err
}

func (w *Writer) turn() error {
	w.f.Close()
	w.f = nil
	if err := os.Rename(w.path, w.path+".1"); err != nil {
		return err
	}
	return w.open()
}

// Close closes the file. Close is idempotent.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	return err
}

// Lines calls line with each line that the file at path holds, the turned-over
// one first. A file that does not exist has none.
func Lines(path string, line func([]byte)) error {
	for _, p := range []string{path + ".1", path} {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = eachLine(f, line)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func eachLine(r io.Reader, line func([]byte)) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 1<<20)
	for s.Scan() {
		line(s.Bytes())
	}
	return s.Err()
}

// pollPeriod is how often Follow looks for more.
const pollPeriod = 100 * time.Millisecond

// Follow calls line with each line that is written from now on, until ctx ends.
func Follow(ctx context.Context, path string, line func([]byte)) error {
	f, offset, err := openEnd(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	var rest []byte
	for {
		rest, offset = drain(f, offset, rest, line)
		if turned(f, path) {
			next, err := os.Open(path)
			if err == nil {
				drain(f, offset, rest, line) // what was written before the change
				f.Close()
				f, offset, rest = next, 0, nil
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollPeriod):
		}
	}
}

// openEnd opens the file, and makes it when it is not there yet: its writer
// appends to whatever exists.
func openEnd(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, 0, fmt.Errorf("follow log file: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("follow log file: %w", err)
	}
	return f, end, nil
}

// turned reports whether path is another file than f by now.
func turned(f *os.File, path string) bool {
	was, err := f.Stat()
	if err != nil {
		return false
	}
	is, err := os.Stat(path)
	return err == nil && !os.SameFile(was, is)
}

// drain reads what there is and hands on whole lines; it returns the part of a
// line that is left.
func drain(f *os.File, offset int64, rest []byte, line func([]byte)) ([]byte, int64) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, offset)
		offset += int64(n)
		for _, c := range buf[:n] {
			if c != '\n' {
				rest = append(rest, c)
				continue
			}
			line(rest)
			rest = rest[:0]
		}
		if err != nil || n == 0 {
			return rest, offset
		}
	}
}
