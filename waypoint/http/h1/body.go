package h1

import (
	"io"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

type bodyKind uint8

const (
	noBody bodyKind = iota
	lengthBody
	chunkedBody
	closeBody // until the peer ends the connection
)

// lineLimit bounds a chunk's size line with its extensions, which are dropped.
const lineLimit = 256

// body reads one message's content out of a connection's input.
type body struct {
	in      *input
	kind    bodyKind
	length  int64 // declared, or -1
	left    int64 // of the length or of the current chunk
	inChunk bool  // a chunk's data, and the CRLF behind it, are not consumed yet
	done    bool
	err     error // what every further Read returns
	limits  Limits

	trailer       *http.Header
	inTrailer     bool // the last chunk has been seen
	trailerBytes  int
	trailerFields int
}

func (b *body) begin(in *input, kind bodyKind, length int64, trailer *http.Header, l Limits) {
	*b = body{in: in, kind: kind, length: length, left: max(length, 0), trailer: trailer, limits: l}
	b.done = kind == noBody || kind == lengthBody && length == 0
}

// Length implements http.Body.
func (b *body) Length() int64 { return b.length }

// Buffered implements http.Body.
func (b *body) Buffered() int {
	n := b.in.buffered()
	if b.kind == closeBody {
		return n
	}
	return int(min(int64(n), b.left))
}

// Read implements http.Body. With the last bytes it returns io.EOF at once if
// the end is known already.
func (b *body) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.done {
		return 0, io.EOF
	}
	n, err = b.read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.kind == chunkedBody && b.left == 0 {
		if err := b.nextChunk(true); err != nil || b.done {
			return 0, orEOF(err)
		}
	}
	if b.kind != closeBody && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.raw(p)
	if b.kind != closeBody {
		b.left -= int64(n)
	}
	switch {
	case err == io.EOF && b.kind == closeBody:
		b.done = true
		return n, io.EOF
	case err != nil:
		return n, midway(err, 1)
	case b.left > 0 || b.kind == closeBody:
		return n, nil
	case b.kind == chunkedBody:
		err = b.nextChunk(false)
	default:
		b.done = true
	}
	if b.done {
		return n, io.EOF
	}
	return n, err
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// raw reads from the buffer if it has something, else straight from the peer
// when p is worth it.
func (b *body) raw(p []byte) (int, error) {
	in := b.in
	if in.buffered() == 0 {
		if len(p) >= len(in.buf) {
			n, err := in.src.Read(p)
			in.read += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		}
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	return n, nil
}

// nextChunk goes past the end of a chunk to the next one's data, or past the
// trailer section to the end. Without wait it only goes as far as bytes are there.
func (b *body) nextChunk(wait bool) error {
	if b.inTrailer {
		return b.readTrailer(wait)
	}
	if b.inChunk {
		line, ok, err := b.in.line(1, wait)
		if err != nil || !ok {
			return chunkEnd(err)
		}
		if len(line) != 0 {
			return errChunkEnd
		}
		b.inChunk = false
	}
	line, ok, err := b.in.line(lineLimit, wait)
	if err != nil || !ok {
		return err
	}
	size, err := parseChunkSize(line)
	if err != nil {
		return err
	}
	if size > 0 {
		b.left, b.inChunk = size, true
		return nil
	}
	b.inTrailer = true
	return b.readTrailer(wait)
}

func chunkEnd(err error) error {
	if err == errChunkExtension || err == errBareLF {
		return errChunkEnd
	}
	return err
}

// parseChunkSize reads "1*HEXDIG [;extensions]" (RFC 9112 §7.1).
func parseChunkSize(line []byte) (int64, error) {
	var n int64
	i := 0
	for ; i < len(line); i++ {
		d := hexDigit(line[i])
		if d < 0 {
			break
		}
		if n > 1<<58 {
			return 0, errChunkSize
		}
		n = n<<4 | int64(d)
	}
	if i == 0 || i > 16 {
		return 0, errChunkSize
	}
	if i < len(line) && (line[i] != ';' || !all(line[i:], isValue)) {
		return 0, errChunkExtension
	}
	return n, nil
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// readTrailer reads field lines up to the empty one. Fields that would change
// framing, routing or the connection are dropped (RFC 9110 §6.5.1).
func (b *body) readTrailer(wait bool) error {
	for {
		line, ok, err := b.in.line(b.limits.HeadBytes, wait)
		if err != nil || !ok {
			return trailerError(err)
		}
		if len(line) == 0 {
			b.done = true
			return nil
		}
		b.trailerBytes += len(line)
		b.trailerFields++
		if b.trailerBytes > b.limits.HeadBytes || b.trailerFields > b.limits.Fields {
			return errHeadTooLarge
		}
		if err := parseField(line, b.trailer); err != nil {
			return err
		}
		if name, _ := b.trailer.At(b.trailer.Len() - 1); forbiddenTrailer(name) {
			b.trailer.DropLast()
		}
	}
}

func trailerError(err error) error {
	if err == errChunkExtension || err == errBareLF {
		return errTrailer
	}
	return err
}

func forbiddenTrailer(name []byte) bool {
	switch string(name) {
	case "content-length", "transfer-encoding", "host", "connection", "trailer", "te", "upgrade", "expect",
		"keep-alive", "proxy-connection", "authorization", "proxy-authorization", "proxy-authenticate",
		"content-encoding", "content-type", "content-range", "cookie", "set-cookie", "location", "cache-control":
		return true
	}
	return false
}
