package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Net opens sockets to servers. A UDP socket must talk to its server alone, from
// a port that nobody can guess.
type Net interface {
	DialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

const (
	attemptTime = 1500 * time.Millisecond // one server, one try
	udpBuffer   = 4096                    // bytes; a longer datagram is asked for again over TCP
	maxForged   = 16                      // datagrams that answer something else before TCP is used instead
)

var errForged = errors.New("answers to other questions came")

// exchange asks one server once: over UDP, and over TCP if that is how it must be or
// if the answer does not fit a datagram. The query is sent as it is, under an id
// that nobody can guess. ctx bounds it.
func exchange(ctx context.Context, via Net, server netip.AddrPort, q *query, tcp bool) ([]byte, error) {
	sent := append([]byte(nil), q.raw...)
	binary.BigEndian.PutUint16(sent, uint16(rand.Uint32()))
	if tcp {
		return exchangeTCP(ctx, via, server, q, sent)
	}
	got, err := exchangeUDP(ctx, via, server, q, sent)
	switch {
	case errors.Is(err, errForged):
	case err != nil:
		return nil, err
	case !truncated(got):
		return got, nil
	}
	binary.BigEndian.PutUint16(sent, uint16(rand.Uint32()))
	full, tcpErr := exchangeTCP(ctx, via, server, q, sent)
	if tcpErr != nil && err == nil {
		return got, nil // cut short is better than nothing: the client comes back over TCP
	}
	return full, tcpErr
}

func exchangeUDP(ctx context.Context, via Net, server netip.AddrPort, q *query, sent []byte) ([]byte, error) {
	c, err := via.DialUDP(ctx, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer closeAfter(ctx, c)()
	if _, err := c.Write(sent); err != nil {
		return nil, cause(ctx, err)
	}
	// One byte more than fits, so that a datagram that the kernel cut is seen.
	buf := make([]byte, min(int(q.size), udpBuffer)+1)
	for range maxForged {
		n, err := c.Read(buf)
		if err != nil {
			return nil, cause(ctx, err)
		}
		got := buf[:n]
		if !answers(sent, got, q) {
			continue
		}
		if n == len(buf) {
			got[2] |= 0x02
			return q.cut(got), nil
		}
		return got, nil
	}
	return nil, errForged
}

func exchangeTCP(ctx context.Context, via Net, server netip.AddrPort, q *query, sent []byte) ([]byte, error) {
	c, err := via.DialTCP(ctx, server)
	if err != nil {
		return nil, cause(ctx, err)
	}
	defer c.Close()
	defer closeAfter(ctx, c)()
	if err := writeMessage(c, sent); err != nil {
		return nil, cause(ctx, err)
	}
	got, err := readMessage(c)
	if err != nil {
		return nil, cause(ctx, err)
	}
	if !answers(sent, got, q) {
		return nil, errForged
	}
	return got, nil
}

// relay asks a server for something that comes in several messages, and hands each
// on as the client's, until the server or the client has had enough.
func relay(ctx context.Context, via Net, server netip.AddrPort, q *query, deliver func([]byte) error) error {
	c, err := via.DialTCP(ctx, server)
	if err != nil {
		return cause(ctx, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	sent := append([]byte(nil), q.raw...)
	binary.BigEndian.PutUint16(sent, uint16(rand.Uint32()))
	if err := writeMessage(c, sent); err != nil {
		return cause(ctx, err)
	}
	for first := true; ; first = false {
		c.SetReadDeadline(time.Now().Add(forwardTime))
		got, err := readMessage(c)
		switch {
		case err != nil && first:
			return cause(ctx, err)
		case err != nil:
			return nil // the server has said everything
		case len(got) < headerSize || got[0] != sent[0] || got[1] != sent[1]:
			return errForged
		}
		if err := deliver(q.fit(got, maxMessage)); err != nil {
			return nil // the client has gone
		}
		if rcode(got) != dns.RcodeSuccess {
			return nil
		}
	}
}

// closeAfter wakes whoever waits on c when ctx ends.
func closeAfter(ctx context.Context, c net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
}

// cause says that time was up where it was.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, fmt.Errorf("message of %d bytes: %w", len(msg), err)
	}
	return msg, nil
}

func writeMessage(w io.Writer, msg []byte) error {
	b := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(b, uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}
