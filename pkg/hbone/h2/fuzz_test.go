package h2

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// script is a transport that plays recorded input, cut into pieces, and checks
// what it is given to send.
type script struct {
	in    []byte
	piece int
	out   bytes.Buffer
}

func (s *script) Wait() error {
	if len(s.in) == 0 {
		return io.EOF
	}
	return nil
}

func (s *script) Records(dst [][]byte) ([][]byte, error) {
	if len(s.in) == 0 {
		return dst, io.EOF
	}
	n := min(s.piece, len(s.in))
	dst = append(dst, s.in[:n])
	s.in = s.in[n:]
	return dst, nil
}

func (s *script) WriteRecords(runs [][]byte) error {
	s.out.Write(plaintext(runs))
	return nil
}

func (s *script) CloseWrite() error          { return nil }
func (s *script) Close() error               { return nil }
func (s *script) LocalAddr() netip.AddrPort  { return netip.AddrPort{} }
func (s *script) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// frames makes fuzz input: kind, flags, stream, length, then the payload, again
// and again. Most of what the fuzzer makes of it are well-formed frames.
func framesOf(p []byte) []byte {
	var out []byte
	for len(p) >= 5 {
		kind, flags, id, n := p[0]%12, p[1], uint32(p[2]%16), int(binary.BigEndian.Uint16(p[3:])%2048)
		p = p[5:]
		n = min(n, len(p))
		out = appendFrame(out, http2.FrameType(kind), http2.Flags(flags), id, p[:n])
		p = p[n:]
	}
	return append(out, p...)
}

// seeds are sequences of frames worth starting from.
func seeds(f *testing.F) {
	var h bytes.Buffer
	enc := hpack.NewEncoder(&h)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.1:80"})
	connect := h.Bytes()
	frame := func(kind, flags, id byte, p []byte) []byte {
		b := []byte{kind, flags, id, byte(len(p) >> 8), byte(len(p))}
		return append(b, p...)
	}
	f.Add(bytes.Join([][]byte{frame(4, 0, 0, nil), frame(1, 4, 1, connect), frame(0, 1, 1, []byte("data")), frame(7, 0, 0, make([]byte, 8))}, nil), uint8(7))
	f.Add(bytes.Join([][]byte{frame(4, 0, 0, []byte{0, 4, 0, 0, 0, 9}), frame(1, 0, 1, connect[:3]), frame(9, 4, 1, connect[3:]), frame(3, 0, 1, make([]byte, 4))}, nil), uint8(1))
	f.Add(bytes.Join([][]byte{frame(4, 0, 0, nil), frame(1, 4, 1, []byte{0x88}), frame(0, 8, 1, []byte{1, 'a', 0}), frame(8, 0, 0, []byte{0, 0, 1, 0}), frame(6, 0, 0, make([]byte, 8))}, nil), uint8(200))
}

// FuzzServer plays frames to a server's connection.
func FuzzServer(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, p []byte, piece uint8) {
		s := &script{in: append([]byte(http2.ClientPreface), framesOf(p)...), piece: int(piece) + 1}
		c := newConn(s, false, Settings{}, nil, nil)
		c.serverSide = serverSide{ctx: context.Background(), handler: fuzzHandler, maxStreams: 4}
		c.greet(4)
		play(t, c, s)
	})
}

// fuzzHandler serves a stream to its end.
func fuzzHandler(_ context.Context, in *hbone.Incoming) {
	if in.Request.Authority == "" {
		panic("CONNECT without authority")
	}
	if s, err := in.Accept(hbone.Response{}); err == nil {
		_, _ = io.Copy(io.Discard, s)
		_ = s.CloseWrite()
	}
}

// FuzzClient plays frames to a client's connection that has opened two streams.
func FuzzClient(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, p []byte, piece uint8) {
		s := &script{in: framesOf(p), piece: int(piece) + 1}
		c := newConn(s, true, Settings{}, nil, nil)
		c.greet(0)
		c.slots = 2
		a, err := c.startStream(request("10.0.0.1:80"))
		b, err2 := c.startStream(request("10.0.0.1:81"))
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		go func() { _, _ = a.Write(make([]byte, 100_000)) }()
		play(t, c, s)
		for _, st := range []*stream{a, b} {
			<-st.done
			_, _ = io.Copy(io.Discard, st)
		}
	})
}

// play runs a connection to the end of its script, and checks that it leaves
// nothing behind and has sent nothing but well-formed frames and known codes.
func play(t *testing.T, c *conn, s *script) {
	_ = c.run()
	c.mu.Lock()
	if n := len(c.streams); n != 0 {
		t.Errorf("%d streams outlive their connection", n)
	}
	c.mu.Unlock()
	hbonetest.Until(t, "writers and handlers to end", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.writing && c.handlers == 0 && !c.work()
	})
	checkOutput(t, s.out.Bytes(), c.client)
}

func checkOutput(t *testing.T, out []byte, client bool) {
	if client {
		out = bytes.TrimPrefix(out, []byte(http2.ClientPreface))
	}
	fr := http2.NewFramer(io.Discard, bytes.NewReader(out))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("sent a malformed frame: %v", err)
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			checkCode(t, f.ErrCode)
		case *http2.RSTStreamFrame:
			checkCode(t, f.ErrCode)
		}
	}
}

func checkCode(t *testing.T, code http2.ErrCode) {
	if code > http2.ErrCodeEnhanceYourCalm || code == http2.ErrCodeInternal {
		t.Errorf("sent %v", code)
	}
}
