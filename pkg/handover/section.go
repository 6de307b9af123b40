package handover

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"iter"
	"time"
)

// A section is
//
//	magic(8) saved(8) contact(8) origin(16) | DEFLATE of records, then an empty name | CRC-32C(4)
//
// with times in nanoseconds since 1970 (0 = none), big-endian. A record is three
// byte strings, each after its length as a uvarint: name, version, body. The
// checksum is of everything before it. Another layout gets another magic.
const magic = "culvert2"

const (
	headerSize = len(magic) + 8 + 8 + len(Origin{})
	maxField   = 16 << 20 // bytes of a name, a version or a body
	maxRecords = 1 << 30  // bytes of all records together
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says how old a section is.
type Header struct {
	Saved   time.Time
	Contact time.Time // when the control plane was last heard of; zero = never
	Origin  Origin
}

// Origin says whose knowledge a section is: that of a node of a mesh. Whoever is
// configured to be somebody else must not go on with it.
type Origin [16]byte

// OriginOf makes an Origin of the names that count, in their order.
func OriginOf(names ...string) (o Origin) {
	h := sha256.New()
	for _, n := range names {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(n))))
		h.Write([]byte(n))
	}
	copy(o[:], h.Sum(nil))
	return o
}

// Record is one thing that is known, under the name and in the version by which
// the control plane knows it.
type Record struct {
	Name    string // not empty
	Version string
	Body    []byte
}

// Encode writes a section. It is done with a record when it asks for the next.
func Encode(w io.Writer, h Header, records iter.Seq[Record]) error {
	sum := &summed{w: w, sum: crc32.New(castagnoli)}
	head := make([]byte, 0, headerSize)
	head = append(head, magic...)
	head = binary.BigEndian.AppendUint64(head, nanos(h.Saved))
	head = binary.BigEndian.AppendUint64(head, nanos(h.Contact))
	head = append(head, h.Origin[:]...)
	if _, err := sum.Write(head); err != nil {
		return err
	}
	// The texts of a mesh are alike: the fastest level makes them a tenth.
	z, err := flate.NewWriter(sum, flate.BestSpeed)
	if err != nil {
		return err
	}
	if err := encodeRecords(z, records); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	_, err = w.Write(sum.sum.Sum(nil))
	return err
}

func encodeRecords(w io.Writer, records iter.Seq[Record]) error {
	var p []byte
	for r := range records {
		if r.Name == "" || max(len(r.Name), len(r.Version), len(r.Body)) > maxField {
			return fmt.Errorf("record %.64q: a field is empty or longer than %d bytes", r.Name, maxField)
		}
		p = appendField(p[:0], r.Name)
		p = appendField(p, r.Version)
		p = binary.AppendUvarint(p, uint64(len(r.Body)))
		p = append(p, r.Body...)
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	_, err := w.Write([]byte{0})
	return err
}

func appendField(p []byte, s string) []byte {
	return append(binary.AppendUvarint(p, uint64(len(s))), s...)
}

func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func fromNanos(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n))
}

// summed passes on what is written and sums it up.
type summed struct {
	w   io.Writer
	sum hash.Hash32
}

func (s *summed) Write(p []byte) (int, error) {
	s.sum.Write(p)
	return s.w.Write(p)
}

var errDamaged = errors.New("section is damaged")

// From returns whose knowledge a section is; false if it is no section.
func From(p []byte) (o Origin, ok bool) {
	if len(p) < headerSize || string(p[:len(magic)]) != magic {
		return o, false
	}
	copy(o[:], p[headerSize-len(o):])
	return o, true
}

// Decode reads a section and calls take for every record; an error of it ends the
// reading. A record's body is the caller's.
func Decode(p []byte, take func(Record) error) (Header, error) {
	if len(p) < headerSize+crc32.Size || string(p[:len(magic)]) != magic {
		return Header{}, fmt.Errorf("%w: not a section of version %q", errDamaged, magic)
	}
	body, sum := p[:len(p)-crc32.Size], binary.BigEndian.Uint32(p[len(p)-crc32.Size:])
	if crc32.Checksum(body, castagnoli) != sum {
		return Header{}, fmt.Errorf("%w: checksum", errDamaged)
	}
	h := Header{
		Origin:  Origin(p[headerSize-len(Origin{}) : headerSize]),
		Saved:   fromNanos(binary.BigEndian.Uint64(p[len(magic):])),
		Contact: fromNanos(binary.BigEndian.Uint64(p[len(magic)+8:])),
	}
	r := bufio.NewReader(io.LimitReader(flate.NewReader(bytes.NewReader(body[headerSize:])), maxRecords))
	for {
		rec, err := decodeRecord(r)
		if err != nil {
			return Header{}, fmt.Errorf("%w: %w", errDamaged, err)
		}
		if rec.Name == "" {
			return h, nil
		}
		if err := take(rec); err != nil {
			return Header{}, err
		}
	}
}

// decodeRecord returns one record; the empty one is the last.
func decodeRecord(r *bufio.Reader) (rec Record, err error) {
	name, err := readField(r)
	if err != nil || len(name) == 0 {
		return Record{}, err
	}
	version, err := readField(r)
	if err != nil {
		return Record{}, err
	}
	if rec.Body, err = readField(r); err != nil {
		return Record{}, err
	}
	rec.Name, rec.Version = string(name), string(version)
	return rec, nil
}

func readField(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, unexpected(err)
	}
	if n > maxField {
		return nil, fmt.Errorf("a field of %d bytes", n)
	}
	if n <= 64<<10 {
		p := make([]byte, n)
		_, err = io.ReadFull(r, p)
		return p, unexpected(err)
	}
	// A length is believed only as far as there is data behind it.
	var b bytes.Buffer
	_, err = io.CopyN(&b, r, int64(n))
	return b.Bytes(), unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
