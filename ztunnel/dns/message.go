package dns

import (
	"encoding/binary"
	"errors"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	minUDP     = 512   // what every client takes over UDP (RFC 1035)
	maxMessage = 65535 // over TCP, whose length has 16 bits
)

var (
	errShort    = errors.New("message is shorter than its header")
	errResponse = errors.New("message is a response")
	errFormat   = errors.New("message is malformed")
)

// query is a client's message, with what has to be known of it. The rest is
// carried as it is.
type query struct {
	raw      []byte
	question Question // of opcode QUERY with exactly one, else zero
	class    uint16
	end      int // of the question in raw; headerSize when there is none
	opcode   int

	edns      bool
	size      uint16 // UDP payload that the client takes, at least minUDP
	version   uint8
	dnssec    bool
	signed    bool // TSIG or SIG(0): an answer is for this client alone
	questions int
}

// parse reads a client's message. errShort and errResponse mean that nobody is to
// be answered; after any other error the query's raw header is usable.
func parse(raw []byte) (query, error) {
	q := query{raw: raw, end: headerSize, size: minUDP}
	if len(raw) < headerSize {
		return q, errShort
	}
	if raw[2]&0x80 != 0 {
		return q, errResponse
	}
	q.opcode = int(raw[2]>>3) & 0xf
	q.questions = int(binary.BigEndian.Uint16(raw[4:]))
	if q.opcode != dns.OpcodeQuery {
		return q, nil
	}
	if q.questions != 1 {
		return q, errFormat
	}
	name, off, err := dns.UnpackDomainName(raw, headerSize)
	if err != nil || off+4 > len(raw) {
		return q, errFormat
	}
	q.question = Question{name, binary.BigEndian.Uint16(raw[off:])}
	q.class = binary.BigEndian.Uint16(raw[off+2:])
	q.end = off + 4
	for rr, err := range records(raw) {
		if err != nil {
			return q, err
		}
		q.note(rr)
	}
	return q, nil
}

func (q *query) note(rr record) {
	switch rr.typ {
	case dns.TypeOPT:
		q.edns = true
		q.size = max(rr.class, minUDP)
		q.version = uint8(rr.ttl >> 16)
		q.dnssec = rr.ttl&0x8000 != 0
	case dns.TypeTSIG, dns.TypeSIG:
		q.signed = true
	}
}

func (q *query) id() uint16 { return binary.BigEndian.Uint16(q.raw) }

// cacheable reports whether an answer serves others who ask the same.
func (q *query) cacheable() bool {
	switch t := q.question.Type; {
	case q.opcode != dns.OpcodeQuery, q.questions != 1, q.signed, t == dns.TypeANY, transfer(t):
		return false
	}
	return true
}

// transfer reports whether a question is answered by several messages over TCP.
func transfer(qtype uint16) bool { return qtype == dns.TypeAXFR || qtype == dns.TypeIXFR }

// key is the query without what may differ between clients that ask the same: the
// id and the case of the name.
func (q *query) key() string {
	b := append([]byte(nil), q.raw...)
	b[0], b[1] = 0, 0
	lower(b[headerSize:q.end])
	return string(b)
}

// lower makes a name in wire form lower case. Lengths are below 'A'.
func lower(b []byte) {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
}

// answers reports whether a message that came from a server answers what was sent
// to it: the same id, opcode and question. A server that refuses may leave the
// question out.
func answers(sent, got []byte, q *query) bool {
	if len(got) < headerSize || got[2]&0x80 == 0 || got[0] != sent[0] || got[1] != sent[1] || (got[2]^sent[2])&0x78 != 0 {
		return false
	}
	if q.end == headerSize {
		return true
	}
	if binary.BigEndian.Uint16(got[4:]) == 0 {
		return rcode(got) != dns.RcodeSuccess && rcode(got) != dns.RcodeNameError
	}
	return len(got) >= q.end && equalFold(got[headerSize:q.end], sent[headerSize:q.end])
}

func equalFold(a, b []byte) bool {
	for i := range a {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return len(a) == len(b)
}

func rcode(msg []byte) int      { return int(msg[3] & 0xf) }
func truncated(msg []byte) bool { return msg[2]&0x02 != 0 }

// fit makes a server's answer the client's: its id, its spelling of the name, and
// no more than limit bytes. msg is modified.
func (q *query) fit(msg []byte, limit int) []byte {
	copy(msg, q.raw[:2])
	if binary.BigEndian.Uint16(msg[4:]) == 1 && len(msg) >= q.end {
		copy(msg[headerSize:q.end], q.raw[headerSize:q.end])
	}
	if len(msg) <= limit {
		return msg
	}
	return q.cut(msg)
}

// cut is an answer without its records, marked as truncated, so that the client
// asks again over TCP.
func (q *query) cut(msg []byte) []byte {
	short := append([]byte(nil), msg[:min(q.end, len(msg))]...)
	short[2] |= 0x02
	clear(short[6:12])
	if q.edns {
		short[11] = 1
		short = append(short, 0, 0, byte(dns.TypeOPT), byte(q.size>>8), byte(q.size), 0, q.version, 0, 0, 0, 0)
		if q.dnssec {
			short[len(short)-4] = 0x80
		}
	}
	return short
}

// record is one resource record of a message.
type record struct {
	section    int // 0 answer, 1 authority, 2 additional
	typ, class uint16
	ttl        uint32
	ttlAt      int // offset of the TTL
	data       []byte
}

// records yields the resource records of a message.
func records(msg []byte) func(yield func(record, error) bool) {
	return func(yield func(record, error) bool) {
		off := headerSize
		for range binary.BigEndian.Uint16(msg[4:]) {
			if off = skipName(msg, off); off < 0 || off+4 > len(msg) {
				yield(record{}, errFormat)
				return
			}
			off += 4
		}
		for section := range 3 {
			for range binary.BigEndian.Uint16(msg[6+2*section:]) {
				if off = skipName(msg, off); off < 0 || off+10 > len(msg) {
					yield(record{}, errFormat)
					return
				}
				rr := record{section: section, typ: binary.BigEndian.Uint16(msg[off:]), class: binary.BigEndian.Uint16(msg[off+2:]),
					ttl: binary.BigEndian.Uint32(msg[off+4:]), ttlAt: off + 4}
				end := off + 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
				if end > len(msg) {
					yield(record{}, errFormat)
					return
				}
				rr.data = msg[off+10 : end]
				if !yield(rr, nil) {
					return
				}
				off = end
			}
		}
	}
}

// skipName returns the offset behind a name, or -1.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		switch c := msg[off]; {
		case c == 0:
			return off + 1
		case c&0xc0 == 0xc0:
			return off + 2
		case c&0xc0 != 0:
			return -1
		default:
			off += 1 + int(c)
		}
	}
	return -1
}
