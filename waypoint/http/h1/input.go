package h1

import (
	"bytes"
	"io"
	"time"
)

const (
	smallBuffer = 4 << 10 // what an idle connection holds
	fillAtLeast = 2 << 10
)

// source is what a connection reads from and writes to.
type source interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// input is the receiving half's buffer: buf[r:w] has arrived and is unread.
type input struct {
	src  source
	buf  []byte
	r, w int
	read int64 // bytes ever received
}

func (in *input) buffered() int { return in.w - in.r }

// fill reads once, at least one byte, making room as needed.
func (in *input) fill() error {
	if in.r == in.w {
		in.r, in.w = 0, 0
		if cap(in.buf) > smallBuffer || in.buf == nil {
			in.buf = make([]byte, smallBuffer)
		}
	}
	if len(in.buf)-in.w < fillAtLeast {
		in.makeRoom()
	}
	n, err := in.src.Read(in.buf[in.w:])
	in.w += n
	in.read += int64(n)
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (in *input) makeRoom() {
	if len(in.buf)-in.buffered() < fillAtLeast {
		bigger := make([]byte, 2*len(in.buf))
		in.w = copy(bigger, in.buf[in.r:in.w])
		in.buf, in.r = bigger, 0
		return
	}
	in.w = copy(in.buf, in.buf[in.r:in.w])
	in.r = 0
}

// head returns a header section with its start line and empty last line. It
// blocks until all of it is there. wait, if not nil, is called once when the
// section has begun to arrive but is not complete. It returns io.EOF when the
// peer ended before the first byte.
func (in *input) head(limit int, wait func()) ([]byte, error) {
	scanned, line := 0, 0 // relative to in.r
	for {
		i := bytes.IndexByte(in.buf[in.r+scanned:in.w], '\n')
		if i < 0 {
			scanned = in.buffered()
			if scanned > limit {
				return nil, errHeadTooLarge
			}
			if scanned > 0 && wait != nil {
				wait()
				wait = nil
			}
			if err := in.fill(); err != nil {
				return nil, midway(err, scanned)
			}
			continue
		}
		end := scanned + i // of the line, at its LF
		if end == 0 || in.buf[in.r+end-1] != '\r' {
			return nil, errBareLF
		}
		if end > limit {
			return nil, errHeadTooLarge
		}
		if end-1 == line {
			if line == 0 { // one empty line before a request is ignored (RFC 9112 §2.2)
				in.r += 2
				return in.headAfterBlank(limit, wait)
			}
			head := in.buf[in.r : in.r+end+1]
			in.r += end + 1
			return head, nil
		}
		scanned, line = end+1, end+1
	}
}

func (in *input) headAfterBlank(limit int, wait func()) ([]byte, error) {
	for in.buffered() < 2 {
		if err := in.fill(); err != nil {
			return nil, midway(err, in.buffered())
		}
	}
	if in.buf[in.r] == '\r' {
		return nil, errStartLine
	}
	return in.head(limit, wait)
}

// line returns one line without its CRLF, of at most limit bytes. When wait is
// false and the line has not arrived, ok is false.
func (in *input) line(limit int, wait bool) (line []byte, ok bool, err error) {
	scanned := 0
	for {
		i := bytes.IndexByte(in.buf[in.r+scanned:in.w], '\n')
		if i >= 0 {
			end := scanned + i
			if end == 0 || in.buf[in.r+end-1] != '\r' {
				return nil, false, errBareLF
			}
			if end > limit+1 {
				return nil, false, errChunkExtension
			}
			line = in.buf[in.r : in.r+end-1]
			in.r += end + 1
			return line, true, nil
		}
		scanned = in.buffered()
		if scanned > limit {
			return nil, false, errChunkExtension
		}
		if !wait {
			return nil, false, nil
		}
		if err := in.fill(); err != nil {
			return nil, false, midway(err, 1)
		}
	}
}

// midway makes the end of the stream inside a message an unexpected one.
func midway(err error, seen int) error {
	if err == io.EOF && seen > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
