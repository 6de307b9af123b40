package tlsconn

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/rawio"
)

const (
	headerLen = 5                        // of a TLS record
	maxRecord = headerLen + 16384 + 2048 // RFC 5246 §6.2.3; TLS 1.3 stays below (RFC 8446 §5.2)
	batchSize = 272 << 10                // one socket read, one socket write: 16 full records and some small ones
)

// Pools hold pointers to arrays: putting one back allocates nothing.
type batchBuf [batchSize]byte
type recordBuf [maxRecord]byte

var (
	batches = sync.Pool{New: func() any { return new(batchBuf) }}
	records = sync.Pool{New: func() any { return new(recordBuf) }}
)

// errWouldBlock ends a tls.Conn's read when no whole record is left. It is a
// temporary net.Error, which tls.Conn passes on without remembering it.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no whole record buffered" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// transport is the net.Conn below a tls.Conn.
//
// Reading: fill reads a gulp of ciphertext; Read hands it up, never past the end
// of a record, so that tls.Conn keeps no more than one record of its own.
// Writing: between cork and uncork records gather in a batch buffer.
type transport struct {
	conn net.Conn
	raw  syscall.RawConn // nil when conn has none

	// Read side, owned by the reader.
	in       []byte     // in[r:w] is ciphertext that tls.Conn has not seen
	r, w     int        //
	big      *batchBuf  // backs in, or
	small    *recordBuf // backs in: the beginning of a record whose rest has not arrived
	left     int        // bytes until the end of the record that tls.Conn is reading
	blocking bool       // Read may wait: during the handshake
	readErr  error      // the end of the input, once met
	gulp     func(fd uintptr) bool
	got      int   // result of gulp
	gotErr   error // result of gulp
	bulk     bool  // the last gulp was large

	// Write side.
	mu     sync.Mutex
	corked bool
	out    *batchBuf
	outLen int
	outErr error

	// A short write of whole records, see writeShort. Its caller holds Conn.wmu.
	short     []byte // what is left of it
	shortErr  error
	shortOnce func(fd uintptr) bool // writeFD, bound once
}

func newTransport(c net.Conn) *transport {
	t := &transport{conn: c, blocking: true}
	if sc, ok := c.(syscall.Conn); ok {
		t.raw, _ = sc.SyscallConn()
	}
	t.gulp = t.readFD
	t.shortOnce = t.writeFD
	return t
}

// whole reports whether the next record is buffered to its end. A record of a
// forbidden length counts: tls.Conn needs no more than its header to refuse it.
func (t *transport) whole() bool {
	n := t.w - t.r
	if t.left > 0 {
		return n >= t.left
	}
	if n < headerLen {
		return false
	}
	size := recordSize(t.in[t.r:])
	return n >= size || size > maxRecord
}

func recordSize(header []byte) int {
	return headerLen + int(binary.BigEndian.Uint16(header[3:]))
}

// fill waits until a whole record is buffered.
func (t *transport) fill() error {
	for !t.whole() {
		if err := t.more(); err != nil {
			return err
		}
	}
	return nil
}

// more waits for some ciphertext and buffers it.
func (t *transport) more() error {
	if t.readErr != nil {
		return t.readErr
	}
	var err error
	if t.raw != nil {
		if err = t.raw.Read(t.gulp); err == nil {
			err = t.gotErr
		}
	} else {
		t.got, err = t.conn.Read(t.space())
	}
	t.w += t.got
	got := t.got
	t.got = 0
	if got > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err == nil || err == io.EOF {
		err = io.EOF
		if t.w > t.r {
			err = io.ErrUnexpectedEOF
		}
	}
	t.readErr = err
	t.release()
	return err
}

// readFD reads once. It borrows the buffer here, when there is something to
// read, and gives it back when there is not.
func (t *transport) readFD(fd uintptr) bool {
	buf := t.space()
	for {
		n, err := t.readOnce(int(fd), buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			t.release()
			return false
		case err != nil:
			t.got, t.gotErr = 0, os.NewSyscallError("read", err)
		case n <= 0:
			t.got, t.gotErr = 0, io.EOF
		default:
			t.got, t.gotErr = n, nil
		}
		return true
	}
}

// readOnce reads as the last read suggests: while records are small, without losing
// the thread's place.
func (t *transport) readOnce(fd int, buf []byte) (n int, err error) {
	if t.bulk {
		n, err = unix.Read(fd, buf)
	} else {
		n, err = rawio.ReadSmall(fd, buf)
	}
	t.bulk = n > rawio.Small
	return n, err
}

// space returns room for a gulp behind what is already buffered.
func (t *transport) space() []byte {
	if t.big == nil {
		b := batches.Get().(*batchBuf)
		t.w = copy(b[:], t.in[t.r:t.w])
		t.r = 0
		t.dropSmall()
		t.big, t.in = b, b[:]
	} else if t.r > 0 {
		t.w = copy(t.in, t.in[t.r:t.w])
		t.r = 0
	}
	return t.in[t.w:]
}

// release gives the big buffer back; the beginning of a record moves to a small one.
func (t *transport) release() {
	if t.big == nil {
		return
	}
	big, rest := t.big, t.in[t.r:t.w]
	t.big, t.in, t.r, t.w = nil, nil, 0, 0
	if len(rest) > 0 {
		t.small = records.Get().(*recordBuf)
		t.in = t.small[:]
		t.w = copy(t.in, rest)
	}
	batches.Put(big)
}

func (t *transport) dropSmall() {
	if t.small != nil {
		records.Put(t.small)
		t.small = nil
	}
}

// Read hands buffered ciphertext to tls.Conn, to the end of one record at most.
func (t *transport) Read(p []byte) (int, error) {
	for t.left == 0 && t.w-t.r < headerLen || t.w == t.r {
		if !t.blocking {
			return 0, errWouldBlock
		}
		if err := t.more(); err != nil {
			return 0, err
		}
	}
	if t.left == 0 {
		if !t.blocking && !t.whole() {
			return 0, errWouldBlock
		}
		t.left = recordSize(t.in[t.r:])
	}
	n := copy(p, t.in[t.r:t.r+min(t.left, t.w-t.r)])
	t.r += n
	t.left -= n
	return n, nil
}

// cork begins a batch.
func (t *transport) cork() {
	t.mu.Lock()
	t.corked = true
	t.mu.Unlock()
}

// uncork sends what has gathered.
func (t *transport) uncork() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.corked = false
	return t.flushLocked()
}

// Write takes one or more records from tls.Conn.
func (t *transport) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.corked {
		return t.conn.Write(p)
	}
	if len(p) > batchSize-t.outLen {
		if err := t.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > batchSize {
		return t.conn.Write(p)
	}
	if t.out == nil {
		t.out = batches.Get().(*batchBuf)
	}
	t.outLen += copy(t.out[t.outLen:], p)
	return len(p), nil
}

func (t *transport) flushLocked() error {
	if t.out == nil {
		return t.outErr
	}
	if t.outErr == nil {
		_, t.outErr = t.conn.Write(t.out[:t.outLen])
	}
	batches.Put(t.out)
	t.out, t.outLen = nil, 0
	return t.outErr
}

// writeShort writes a few records that are sealed already, past tls.Conn.
func (t *transport) writeShort(p []byte) error {
	if t.raw == nil || len(p) > rawio.Small {
		_, err := t.conn.Write(p)
		return err
	}
	t.short, t.shortErr = p, nil
	err := t.raw.Write(t.shortOnce)
	t.short = nil
	if err == nil {
		err = t.shortErr
	}
	return err
}

// writeFD writes t.short; it reports false where it has to wait for room.
func (t *transport) writeFD(fd uintptr) bool {
	for len(t.short) > 0 {
		n, err := rawio.Write(int(fd), t.short)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			t.shortErr = os.NewSyscallError("write", err)
			return true
		default:
			t.short = t.short[n:]
		}
	}
	return true
}

// The rest of net.Conn.

func (t *transport) Close() error                       { return t.conn.Close() }
func (t *transport) LocalAddr() net.Addr                { return t.conn.LocalAddr() }
func (t *transport) RemoteAddr() net.Addr               { return t.conn.RemoteAddr() }
func (t *transport) SetDeadline(d time.Time) error      { return t.conn.SetDeadline(d) }
func (t *transport) SetReadDeadline(d time.Time) error  { return t.conn.SetReadDeadline(d) }
func (t *transport) SetWriteDeadline(d time.Time) error { return t.conn.SetWriteDeadline(d) }
