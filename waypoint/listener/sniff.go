package listener

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/config"
)

// verdict is what a connection's first bytes say.
type verdict uint8

const (
	undecided verdict = iota
	isHTTP1
	isHTTP2
	isOther
)

// preface is how HTTP/2 without TLS begins (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n"

// longestMethod bounds how far the first word of a request is looked for.
const longestMethod = 24

// judge looks at the first bytes of a connection: an HTTP/1 request begins with
// a method in capitals and a target.
func judge(b []byte) verdict {
	n := min(len(b), len(preface))
	if string(b[:n]) == preface[:n] && n > 1 {
		if n == len(preface) {
			return isHTTP2
		}
		return undecided
	}
	sp := bytes.IndexByte(b, ' ')
	word := b
	if sp >= 0 {
		word = b[:sp]
	}
	if len(word) > longestMethod {
		return isOther
	}
	for _, c := range word {
		if (c < 'A' || c > 'Z') && c != '-' {
			return isOther
		}
	}
	switch {
	case sp < 0 || sp+1 == len(b):
		return undecided
	case sp == 0:
		return isOther
	}
	switch c := b[sp+1]; c {
	case '/', '*', 'h', 'H':
		return isHTTP1
	default:
		if bytes.HasPrefix(b, []byte("CONNECT ")) {
			return isHTTP1 // to be refused as such
		}
		return isOther
	}
}

// sniff reads the first bytes of a connection into c.First and says what it is.
//
//	declared HTTP   HTTP/2 when it begins like that, or else HTTP/1
//	not declared    HTTP of either version; everything else, silence included, is TCP
func (l *Listener) sniff(c *Conn, dest *config.Destination) (config.Protocol, error) {
	if dest.Protocol == config.Auto {
		if err := c.Stream.SetReadDeadline(time.Now().Add(l.cfg.DetectTimeout)); err != nil {
			return 0, err
		}
	}
	v, err := readFirst(c)
	if dest.Protocol == config.Auto {
		if derr := c.Stream.SetReadDeadline(time.Time{}); derr != nil {
			return 0, derr
		}
	}
	silent := errors.Is(err, os.ErrDeadlineExceeded)
	if err == io.EOF && len(c.First) > 0 || err == io.EOF && dest.Protocol == config.Auto {
		err = nil // a client that only listens, or says little
	}
	if err != nil && !silent {
		return 0, err
	}
	c.HTTP2 = v == isHTTP2
	if dest.Protocol == config.HTTP || v == isHTTP1 || v == isHTTP2 {
		return config.HTTP, nil
	}
	return config.TCP, nil
}

// readFirst reads until the protocol is decided.
func readFirst(c *Conn) (verdict, error) {
	buf := make([]byte, 4<<10)
	n := 0
	for {
		m, err := c.Stream.Read(buf[n:])
		n += m
		c.First = buf[:n]
		if v := judge(c.First); v != undecided && n > 0 {
			return v, nil
		}
		if err != nil {
			return undecided, err
		}
	}
}
