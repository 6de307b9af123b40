package tlsconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// A layer protects the records of a connection after its handshake, where they
// lie, in place of the tls.Conn that made the keys. See docs/design/
// 2026-11-tunnel-throughput.md for why, and for what it must not get wrong.
//
//	reader: gulp ──▶ in.open ──▶ application data, alerts, KeyUpdate, tickets
//	writer: run  ──▶ out.seal ──▶ socket, under Conn.wmu
type layer struct {
	client bool
	counts counts

	// Owned by the reader.
	in      half
	partial []byte // of a post-handshake message whose rest has not arrived
	useless int    // records in a row that brought no data

	// Owned by whoever holds Conn.wmu.
	out    half
	limit  uint64 // records to seal with one key
	shut   bool   // close_notify has been sent
	outErr error  // of the socket: what is on the wire is not known any more

	owed  atomic.Bool   // the peer asked for a KeyUpdate: due before more data
	alert atomic.Uint32 // 1 + the alert to send, 0 for none
}

// counts of what the peer may send besides data, and of our key updates.
type counts struct {
	tickets, updatesReceived, updatesSent atomic.Uint64
}

// Counts says what a connection's records carried besides data. All are zero
// where crypto/tls carries the records.
type Counts struct {
	Tickets            uint64 // NewSessionTicket received, and ignored
	KeyUpdatesReceived uint64
	KeyUpdatesSent     uint64
}

const (
	// maxSealed is how many records one key seals: below 2^24.5, after which the
	// margin of AES-GCM's confidentiality is used up (RFC 8446 §5.5).
	maxSealed = 1 << 24
	// maxUseless is how many records in a row may bring no data before the peer
	// only keeps us busy.
	maxUseless = 32
	// maxPartial bounds a post-handshake message; a ticket has at most 64 KiB.
	maxPartial = 1<<16 + 512
)

// Handshake messages after the handshake (RFC 8446 §4.6).
const (
	msgNewSessionTicket = 4
	msgKeyUpdate        = 24
	msgHeader           = 4
)

// newLayer takes the records over from a tls.Conn whose handshake is done; nil
// where it has to keep them.
func newLayer(state tls.ConnectionState, s *secrets, client bool) (*layer, error) {
	defer s.wipe()
	suite, ok := suiteOf(state.CipherSuite)
	if state.Version != tls.VersionTLS13 || !ok || s.client == nil || s.server == nil {
		return nil, nil
	}
	l := &layer{client: client, limit: maxSealed}
	in, out := s.client, s.server
	if client {
		in, out = out, in
	}
	if err := errors.Join(l.in.start(suite, in), l.out.start(suite, out)); err != nil {
		return nil, err
	}
	return l, nil
}

// read opens one record. Without data and error it was one of the others.
func (l *layer) read(rec []byte) ([]byte, error) {
	kind, p, err := l.in.open(rec)
	if err != nil {
		return nil, err
	}
	if l.partial != nil && kind != typeHandshake {
		return nil, alertUnexpected // RFC 8446 §5.1: not interleaved
	}
	if kind == typeApplication && len(p) > 0 {
		l.useless = 0
		return p, nil
	}
	if l.useless++; l.useless > maxUseless {
		return nil, alertUnexpected
	}
	switch kind {
	case typeApplication:
		return nil, nil
	case typeAlert:
		return nil, l.readAlert(p)
	case typeHandshake:
		return nil, l.readMessages(p)
	}
	return nil, alertUnexpected
}

// readAlert takes the peer's alert. In TLS 1.3 all but two are fatal, whatever
// their level says (RFC 8446 §6).
func (l *layer) readAlert(p []byte) error {
	switch {
	case len(p) != 2:
		return alertDecode
	case p[1] == alertCloseNotify:
		return io.EOF
	case p[1] == alertUserCanceled:
		return nil
	}
	return &net.OpError{Op: "remote error", Err: tls.AlertError(p[1])}
}

// readMessages takes handshake messages, which may span records.
func (l *layer) readMessages(p []byte) error {
	if len(p) == 0 {
		return alertUnexpected
	}
	if l.partial != nil {
		p = append(l.partial, p...)
		l.partial = nil
	}
	for len(p) > 0 {
		if len(p) < msgHeader {
			break
		}
		size := msgHeader + int(p[1])<<16 + int(p[2])<<8 + int(p[3])
		if size > maxPartial {
			return alertDecode
		}
		if len(p) < size {
			break
		}
		if err := l.message(p[0], p[msgHeader:size], len(p) == size); err != nil {
			return err
		}
		p = p[size:]
	}
	if len(p) > 0 {
		l.partial = append([]byte(nil), p...)
	}
	return nil
}

// message takes one handshake message; last tells that its record ends with it.
func (l *layer) message(kind byte, body []byte, last bool) error {
	switch {
	case kind == msgNewSessionTicket && l.client:
		l.counts.tickets.Add(1) // every connection of ours is a full handshake
		return nil
	case kind != msgKeyUpdate || !last: // no message may span a change of keys
		return alertUnexpected
	case len(body) != 1 || body[0] > 1:
		return alertDecode
	}
	l.counts.updatesReceived.Add(1)
	if body[0] == 1 {
		l.owed.Store(true)
	}
	return l.in.update()
}

// seal protects the records of a run. It is called with Conn.wmu held.
func (l *layer) seal(run []byte) {
	for len(run) > 0 {
		n := min(len(run), FullRecord)
		l.out.seal(run[:n], typeApplication)
		run = run[n:]
	}
}

// rekey returns the record that a run of so many records must follow, nil for
// none: our KeyUpdate, when the peer has asked for it or the key is used up. It
// is called with Conn.wmu held.
func (l *layer) rekey(records uint64) ([]byte, error) {
	if !l.owed.Load() && l.out.seq+records < l.limit {
		return nil, nil
	}
	l.owed.Store(false)
	rec := l.small(typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 0})
	l.counts.updatesSent.Add(1)
	return rec, l.out.update()
}

// small makes a record of a few bytes. It is called with Conn.wmu held.
func (l *layer) small(kind byte, p []byte) []byte {
	rec := make([]byte, HeaderRoom+len(p)+TailRoom)
	copy(rec[HeaderRoom:], p)
	l.out.seal(rec, kind)
	return rec
}
