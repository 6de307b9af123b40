package h1

import (
	"io"
	stdhttp "net/http"
	"strconv"
	"sync"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

const (
	bigBuffer  = 64 << 10 // borrowed while a long body streams
	longBody   = 8 << 10  // bytes after which a body is long
	copyRoom   = 1 << 10  // free bytes that make another read worth while
	chunkExtra = 2 + 5    // CRLF behind a chunk, and the last chunk behind that
)

// Buffers lends large buffers to connections while they stream. The zero value
// is ready; it is safe for concurrent use.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() *[bigBuffer]byte {
	if p, ok := b.pool.Get().(*[bigBuffer]byte); ok {
		return p
	}
	return new([bigBuffer]byte)
}

// output is the sending half: what is in buf goes out with the next flush.
type output struct {
	dst     io.Writer
	buf     []byte
	small   []byte // buf's own memory, while buf is borrowed
	big     *[bigBuffer]byte
	lend    *Buffers
	written int64 // bytes handed to dst
	err     error // of dst; final
}

func (o *output) flush() error {
	if o.err != nil || len(o.buf) == 0 {
		return o.err
	}
	n, err := o.dst.Write(o.buf)
	o.written += int64(n)
	o.buf = o.buf[:0]
	o.err = err
	return err
}

// borrow exchanges an empty small buffer for a big one.
func (o *output) borrow() {
	o.big, o.small = o.lend.get(), o.buf
	o.buf = o.big[:0]
}

func (o *output) giveBack() {
	if o.big == nil {
		return
	}
	o.lend.pool.Put(o.big)
	o.buf, o.big, o.small = o.small[:0], nil, nil
}

// statusLines has the ready-made start of a response for each status with a
// name; it is never written after start-up.
var statusLines = makeStatusLines()

func makeStatusLines() (t [600]string) {
	for code := range t {
		if text := stdhttp.StatusText(code); text != "" {
			t[code] = "HTTP/1.1 " + strconv.Itoa(code) + " " + text + "\r\n"
		}
	}
	return t
}

// start makes the buffer that a connection keeps, at its first message.
func (o *output) start() {
	if o.buf == nil {
		o.buf = make([]byte, 0, smallBuffer)
	}
}

func (o *output) statusLine(code int) {
	o.start()
	if code < len(statusLines) && statusLines[code] != "" {
		o.buf = append(o.buf, statusLines[code]...)
		return
	}
	o.buf = append(o.buf, "HTTP/1.1 "...)
	o.buf = strconv.AppendInt(o.buf, int64(code), 10)
	o.buf = append(o.buf, " \r\n"...)
}

func (o *output) requestLine(r *http.Request) {
	o.start()
	o.buf = append(o.buf, r.Method...)
	o.buf = append(o.buf, ' ')
	o.buf = append(o.buf, r.Target()...)
	o.buf = append(o.buf, " HTTP/1.1\r\nhost: "...)
	o.buf = append(o.buf, r.Authority()...)
	o.buf = append(o.buf, "\r\n"...)
}

func (o *output) fields(h *http.Header) {
	for i := range h.Len() {
		name, value := h.At(i)
		o.buf = append(o.buf, name...)
		o.buf = append(o.buf, ": "...)
		o.buf = append(o.buf, value...)
		o.buf = append(o.buf, "\r\n"...)
	}
}

func (o *output) field(name, value string) {
	o.buf = append(o.buf, name...)
	o.buf = append(o.buf, ": "...)
	o.buf = append(o.buf, value...)
	o.buf = append(o.buf, "\r\n"...)
}

func (o *output) contentLength(n int64) {
	o.buf = append(o.buf, "content-length: "...)
	o.buf = strconv.AppendInt(o.buf, n, 10)
	o.buf = append(o.buf, "\r\n"...)
}

// upgrade writes the two fields that ask for or confirm a switch of protocol.
func (o *output) upgrade(protocol []byte) {
	o.buf = append(o.buf, "connection: upgrade\r\nupgrade: "...)
	o.buf = append(o.buf, protocol...)
	o.buf = append(o.buf, "\r\n"...)
}

func (o *output) endHead() { o.buf = append(o.buf, "\r\n"...) }

// copyBody streams b behind the head in o.buf and flushes whenever the next read
// would wait, so that nothing is held back. bodyErr is b's failure and writeErr
// the connection's; after either one the message is incomplete.
func (o *output) copyBody(b http.Body, chunked bool, trailer *http.Header) (bodyErr, writeErr error) {
	defer o.giveBack()
	sent := 0
	for {
		if cap(o.buf)-len(o.buf) < copyRoom+chunkExtra || sent > longBody && o.big == nil {
			if err := o.flush(); err != nil {
				return nil, err
			}
			if o.big == nil && (sent > longBody || cap(o.buf) < 2*copyRoom) {
				o.borrow()
			}
		}
		n, err := o.readFrom(b, chunked)
		sent += n
		if err == io.EOF {
			if chunked {
				o.lastChunk(trailer)
			}
			return nil, o.flush()
		}
		if err != nil || b.Buffered() == 0 {
			if ferr := o.flush(); ferr != nil {
				return err, ferr
			}
		}
		if err != nil {
			return err, nil
		}
	}
}

// readFrom reads once from b into the free part of o.buf, as a chunk if asked.
func (o *output) readFrom(b http.Body, chunked bool) (int, error) {
	free := o.buf[len(o.buf):cap(o.buf)]
	if !chunked {
		n, err := b.Read(free)
		o.buf = o.buf[:len(o.buf)+n]
		return n, err
	}
	head := hexLen(len(free)) + 2
	n, err := b.Read(free[head : len(free)-chunkExtra])
	if n == 0 {
		return 0, err
	}
	data := free[head : head+n]
	o.buf = strconv.AppendInt(o.buf, int64(n), 16)
	o.buf = append(o.buf, "\r\n"...)
	o.buf = append(o.buf, data...) // onto itself, or a few bytes to the left
	o.buf = append(o.buf, "\r\n"...)
	return n, err
}

func hexLen(n int) int {
	d := 1
	for n >>= 4; n > 0; n >>= 4 {
		d++
	}
	return d
}

func (o *output) lastChunk(trailer *http.Header) {
	o.buf = append(o.buf, "0\r\n"...)
	o.fields(trailer)
	o.endHead()
}
