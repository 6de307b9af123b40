package h2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// plain is a transport without TLS, over any connection.
type plain struct {
	net.Conn
	ahead []byte
}

func (p *plain) Wait() error {
	if len(p.ahead) > 0 {
		return nil
	}
	buf := make([]byte, 4096)
	n, err := p.Conn.Read(buf)
	p.ahead = buf[:n]
	return err
}

func (p *plain) Records(dst [][]byte) ([][]byte, error) {
	if err := p.Wait(); err != nil {
		return dst, err
	}
	dst = append(dst, p.ahead)
	p.ahead = nil
	return dst, nil
}

func (p *plain) WriteRecords(runs [][]byte) error {
	_, err := p.Conn.Write(plaintext(runs))
	return err
}

// plaintext returns what runs of records carry.
func plaintext(runs [][]byte) (p []byte) {
	for _, run := range runs {
		for len(run) > 0 {
			n := min(len(run), tlsconn.FullRecord)
			p = append(p, plainOf(run[:n])...)
			run = run[n:]
		}
	}
	return p
}

func (p *plain) CloseWrite() error {
	switch c := p.Conn.(type) {
	case *net.TCPConn:
		return c.CloseWrite()
	case *buffered:
		c.out <- nil // once everything has been passed on
	}
	return nil
}

func (p *plain) LocalAddr() netip.AddrPort  { return netip.AddrPort{} }
func (p *plain) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// rawPeer speaks frames to a conn under test.
type rawPeer struct {
	t    testing.TB
	c    net.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer
	hear chan string // what arrived: "GOAWAY PROTOCOL_ERROR", "RST 1 CANCEL", "HEADERS 1 200", "END"
}

// serveRaw runs a server's conn and returns a client that speaks frames to it.
func serveRaw(t testing.TB, handler hbone.Handler) (*rawPeer, *conn) {
	t.Helper()
	a, b := hbonetest.TCPPair(t)
	c := newConn(&plain{Conn: a}, false, Settings{ConnWindow: 4 << 20}, nil, nil)
	c.serverSide = serverSide{ctx: context.Background(), handler: handler, maxStreams: 20}
	return startRaw(t, c, b), c
}

// dialRaw runs a client's conn and returns a server that speaks frames to it.
func dialRaw(t testing.TB) (*rawPeer, *conn) {
	t.Helper()
	a, b := hbonetest.TCPPair(t)
	c := newConn(&plain{Conn: a}, true, Settings{ConnWindow: 4 << 20}, nil, nil)
	return startRaw(t, c, b), c
}

func startRaw(t testing.TB, c *conn, b net.Conn) *rawPeer {
	c.greet(20)
	ended := make(chan struct{})
	go func() {
		_ = c.run()
		close(ended)
	}()
	p := &rawPeer{t: t, c: b, fr: http2.NewFramer(b, b), hear: make(chan string, 10000)}
	p.fr.AllowIllegalWrites = true
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	if c.client {
		if _, err := io.ReadFull(b, make([]byte, len(http2.ClientPreface))); err != nil {
			t.Fatal(err)
		}
	} else {
		_, _ = io.WriteString(b, http2.ClientPreface)
	}
	go p.listen()
	t.Cleanup(func() {
		_ = b.Close()
		<-ended
	})
	return p
}

// listen reports what the conn under test says.
func (p *rawPeer) listen() {
	defer close(p.hear)
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			p.hear <- "GOAWAY " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			p.hear <- "RST " + f.ErrCode.String()
		case *http2.MetaHeadersFrame:
			p.hear <- "HEADERS " + f.PseudoValue("status")
		case *http2.DataFrame:
			if f.StreamEnded() {
				p.hear <- "END"
			}
		}
	}
}

// wants waits for a message, skipping others.
func (p *rawPeer) wants(want string) {
	p.t.Helper()
	late := time.After(2 * time.Minute)
	var got []string
	for {
		select {
		case msg, ok := <-p.hear:
			if msg == want {
				return
			}
			got = append(got, msg)
			if !ok {
				p.t.Fatalf("got %q and the end of the connection, want %q", got, want)
			}
		case <-late:
			p.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func (p *rawPeer) settings(s ...http2.Setting) { _ = p.fr.WriteSettings(s...) }

// headers sends a header section of name, value pairs.
func (p *rawPeer) headers(id uint32, end bool, fields ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.section(fields...), EndHeaders: true, EndStream: end})
}

func (p *rawPeer) section(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *rawPeer) connect(id uint32) {
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
}

// raw sends a frame whatever it says.
func (p *rawPeer) raw(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	_ = p.fr.WriteRawFrame(kind, flags, id, payload)
}

// acceptAndRead serves a stream to its end.
func acceptAndRead(_ context.Context, in *hbone.Incoming) {
	if s, err := in.Accept(hbone.Response{}); err == nil {
		_, _ = io.Copy(io.Discard, s)
		_ = s.CloseWrite()
	}
}

// acceptAndHold serves a stream and reads nothing.
func acceptAndHold(ctx context.Context, in *hbone.Incoming) {
	if s, err := in.Accept(hbone.Response{}); err == nil {
		<-s.Done()
	}
}

var big = make([]byte, 256<<10)

// What a client does wrong, and what the server answers.
var serverErrors = []struct {
	name string
	do   func(p *rawPeer)
	want string
}{
	{"no settings first", func(p *rawPeer) { _ = p.fr.WritePing(false, [8]byte{}) }, "GOAWAY PROTOCOL_ERROR"},
	{"settings on a stream", func(p *rawPeer) { p.raw(http2.FrameSettings, 0, 1, nil) }, "GOAWAY PROTOCOL_ERROR"},
	{"settings of a wrong size", func(p *rawPeer) { p.raw(http2.FrameSettings, 0, 0, make([]byte, 5)) }, "GOAWAY FRAME_SIZE_ERROR"},
	{"window setting too large", func(p *rawPeer) { p.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "GOAWAY FLOW_CONTROL_ERROR"},
	{"frame size setting too small", func(p *rawPeer) { p.settings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, "GOAWAY PROTOCOL_ERROR"},
	{"ping of a wrong size", func(p *rawPeer) { p.settings(); p.raw(http2.FramePing, 0, 0, make([]byte, 7)) }, "GOAWAY FRAME_SIZE_ERROR"},
	{"ping on a stream", func(p *rawPeer) { p.settings(); p.raw(http2.FramePing, 0, 1, make([]byte, 8)) }, "GOAWAY PROTOCOL_ERROR"},
	{"frame over the limit", func(p *rawPeer) { p.settings(); p.raw(http2.FrameData, 0, 1, make([]byte, 1<<20+1)) }, "GOAWAY FRAME_SIZE_ERROR"},
	{"data before headers", func(p *rawPeer) { p.settings(); _ = p.fr.WriteData(1, false, []byte("x")) }, "GOAWAY PROTOCOL_ERROR"},
	{"data on stream 0", func(p *rawPeer) { p.settings(); p.raw(http2.FrameData, 0, 0, []byte("x")) }, "GOAWAY PROTOCOL_ERROR"},
	{"padding longer than data", func(p *rawPeer) {
		p.settings()
		p.connect(1)
		p.raw(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1})
	}, "GOAWAY PROTOCOL_ERROR"},
	{"even stream", func(p *rawPeer) { p.settings(); p.connect(2) }, "GOAWAY PROTOCOL_ERROR"},
	{"stream number goes down", func(p *rawPeer) { p.settings(); p.connect(5); p.connect(3) }, "GOAWAY STREAM_CLOSED"},
	{"reset of an idle stream", func(p *rawPeer) { p.settings(); _ = p.fr.WriteRSTStream(1, 0) }, "GOAWAY PROTOCOL_ERROR"},
	{"window update on an idle stream", func(p *rawPeer) { p.settings(); _ = p.fr.WriteWindowUpdate(1, 1) }, "GOAWAY PROTOCOL_ERROR"},
	{"connection window overflow", func(p *rawPeer) { p.settings(); _ = p.fr.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY FLOW_CONTROL_ERROR"},
	{"stream window overflow", func(p *rawPeer) { p.settings(); p.connect(1); _ = p.fr.WriteWindowUpdate(1, 1<<31-1) }, "RST FLOW_CONTROL_ERROR"},
	{"window update of 0", func(p *rawPeer) { p.settings(); p.connect(1); p.raw(http2.FrameWindowUpdate, 0, 1, make([]byte, 4)) }, "RST PROTOCOL_ERROR"},
	{"push promise", func(p *rawPeer) { p.settings(); p.raw(http2.FramePushPromise, 0, 1, make([]byte, 4)) }, "GOAWAY PROTOCOL_ERROR"},
	{"continuation alone", func(p *rawPeer) { p.settings(); _ = p.fr.WriteContinuation(1, true, nil) }, "GOAWAY PROTOCOL_ERROR"},
	{"frame inside a header section", func(p *rawPeer) {
		p.settings()
		p.raw(http2.FrameHeaders, 0, 1, nil)
		_ = p.fr.WritePing(false, [8]byte{})
	}, "GOAWAY PROTOCOL_ERROR"},
	{"continuation flood", func(p *rawPeer) {
		p.settings()
		p.raw(http2.FrameHeaders, 0, 1, nil)
		for range 20 {
			_ = p.fr.WriteContinuation(1, false, nil)
		}
	}, "GOAWAY ENHANCE_YOUR_CALM"},
	{"header section far too large", func(p *rawPeer) { p.settings(); p.raw(http2.FrameHeaders, 0, 1, make([]byte, 200<<10)) }, "GOAWAY ENHANCE_YOUR_CALM"},
	{"bad compression", func(p *rawPeer) {
		p.settings()
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}, "GOAWAY COMPRESSION_ERROR"},
	{"stream window exceeded", func(p *rawPeer) {
		p.settings()
		p.connect(1)
		_ = p.fr.WriteData(1, false, big)
		_ = p.fr.WriteData(1, false, big[:1])
	}, "RST FLOW_CONTROL_ERROR"},
	{"connection window exceeded", func(p *rawPeer) {
		p.settings()
		p.connect(1)
		p.raw(http2.FrameData, 0, 1, make([]byte, 1<<20))
		for range 4 {
			p.raw(http2.FrameData, 0, 1, make([]byte, 1<<20))
		}
	}, "RST FLOW_CONTROL_ERROR"}, // credited on receipt: only the stream is at fault
	{"data after the end", func(p *rawPeer) {
		p.settings()
		p.connect(1)
		_ = p.fr.WriteData(1, true, nil)
		_ = p.fr.WriteData(1, false, []byte("x"))
	}, "RST STREAM_CLOSED"},
	{"headers on a connected stream", func(p *rawPeer) { p.settings(); p.connect(1); p.headers(1, true, "a", "b") }, "RST PROTOCOL_ERROR"},
	{"connect with path", func(p *rawPeer) {
		p.settings()
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", ":path", "/")
	}, "RST PROTOCOL_ERROR"},
	{"extended connect", func(p *rawPeer) {
		p.settings()
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", ":protocol", "connect-udp")
	}, "RST PROTOCOL_ERROR"},
	{"connection header", func(p *rawPeer) {
		p.settings()
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "transfer-encoding", "chunked")
	}, "RST PROTOCOL_ERROR"},
	{"upper case header", func(p *rawPeer) {
		p.settings()
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "Upper", "x")
	}, "RST PROTOCOL_ERROR"},
	{"no authority", func(p *rawPeer) { p.settings(); p.headers(1, false, ":method", "CONNECT") }, "HEADERS 400"},
	{"other method", func(p *rawPeer) {
		p.settings()
		p.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a")
	}, "HEADERS 400"},
	{"header list too large", func(p *rawPeer) {
		p.settings()
		fields := []string{":method", "CONNECT", ":authority", "a:1"}
		for range 20 {
			fields = append(fields, "x", strings.Repeat("y", 4000))
		}
		p.headers(1, false, fields...)
	}, "HEADERS 431"},
	{"too many streams", func(p *rawPeer) {
		p.settings()
		for i := range uint32(21) {
			p.connect(2*i + 1)
		}
	}, "RST REFUSED_STREAM"},
	{"handlers that do not end", func(p *rawPeer) {
		p.settings()
		for i := range uint32(40) {
			p.connect(2*i + 1)
			p.wants("HEADERS 200")
			_ = p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}
		p.connect(81)
	}, "RST REFUSED_STREAM"},
	{"rapid reset", func(p *rawPeer) {
		p.settings()
		for i := range uint32(2000) {
			p.connect(2*i + 1)
			_ = p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}
	}, "GOAWAY ENHANCE_YOUR_CALM"},
	{"empty data flood", func(p *rawPeer) {
		p.settings()
		p.connect(1)
		for range 2000 {
			_ = p.fr.WriteData(1, false, nil)
		}
	}, "GOAWAY ENHANCE_YOUR_CALM"},
	{"unknown frames pass", func(p *rawPeer) {
		p.settings()
		p.raw(0x77, 0xff, 1, make([]byte, 100_000))
		p.raw(http2.FramePriority, 0, 1, []byte{0, 0, 0, 0, 1})
		p.connect(1)
		_ = p.fr.WriteDataPadded(1, true, []byte("data"), make([]byte, 100))
	}, "END"},
}

func TestServerErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range serverErrors {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			handler := hbone.Handler(acceptAndHold)
			if tc.want == "END" {
				handler = acceptAndRead
			}
			if tc.name == "rapid reset" {
				handler = func(ctx context.Context, in *hbone.Incoming) { <-ctx.Done() }
			}
			if tc.name == "handlers that do not end" {
				handler = func(_ context.Context, in *hbone.Incoming) { _, _ = in.Accept(hbone.Response{}); <-t.Context().Done() }
			}
			p, _ := serveRaw(t, handler)
			tc.do(p)
			p.wants(tc.want)
		})
	}
}

// A client that is no HTTP/2 client is told so.
func TestServerWithoutPreface(t *testing.T) {
	t.Parallel()
	a, b := hbonetest.TCPPair(t)
	c := newConn(&plain{Conn: a}, false, Settings{}, nil, nil)
	c.greet(20)
	go func() { _, _ = io.WriteString(b, "GET / HTTP/1.1\r\n\r\n"); _ = b.CloseWrite() }()
	var ce *connError
	if err := c.run(); !errors.As(err, &ce) || ce.code != http2.ErrCodeProtocol {
		t.Errorf("run: %v", err)
	}
}

// What a server does wrong, and what the client answers.
var clientErrors = []struct {
	name string
	do   func(p *rawPeer)
	want string
}{
	{"data before the response", func(p *rawPeer) { _ = p.fr.WriteData(1, false, []byte("x")) }, "RST PROTOCOL_ERROR"},
	{"malformed status", func(p *rawPeer) { p.headers(1, false, ":status", "abc") }, "RST PROTOCOL_ERROR"},
	{"headers on an idle stream", func(p *rawPeer) { p.headers(3, false, ":status", "200") }, "GOAWAY PROTOCOL_ERROR"},
	{"push enabled", func(p *rawPeer) { p.settings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}) }, "GOAWAY PROTOCOL_ERROR"},
	{"push promise", func(p *rawPeer) { p.raw(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2}) }, "GOAWAY PROTOCOL_ERROR"},
	{"second response", func(p *rawPeer) {
		p.headers(1, false, ":status", "200")
		p.headers(1, false, ":status", "200")
	}, "RST PROTOCOL_ERROR"},
	{"interim response that ends", func(p *rawPeer) { p.headers(1, true, ":status", "100") }, "RST PROTOCOL_ERROR"},
	{"window exceeded", func(p *rawPeer) {
		p.headers(1, false, ":status", "200")
		p.raw(http2.FrameData, 0, 1, append(big, 1))
	}, "RST FLOW_CONTROL_ERROR"},
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range clientErrors {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, c := dialRaw(t)
			p.settings()
			go func() {
				if c.reserveSlot(100) {
					_, _, _ = c.open(context.Background(), request("10.0.0.1:80"))
				}
			}()
			p.wants("HEADERS ")
			tc.do(p)
			p.wants(tc.want)
		})
	}
}

// An interim response is skipped, padding is dropped, and bytes arrive in order
// however they are cut into frames.
func TestClientReads(t *testing.T) {
	t.Parallel()
	p, c := dialRaw(t)
	p.settings()
	go func() {
		p.wants("HEADERS ")
		p.headers(1, false, ":status", "103")
		p.headers(1, false, ":status", "200", "baggage", "k8s.namespace.name=x")
		for i := range 200 {
			_ = p.fr.WriteDataPadded(1, false, bytes.Repeat([]byte{byte(i)}, i), make([]byte, i%3*100))
		}
		_ = p.fr.WriteData(1, true, nil)
	}()
	if !c.reserveSlot(100) {
		t.Fatal("no slot")
	}
	s, resp, err := c.open(context.Background(), request("10.0.0.1:80"))
	if err != nil || resp.Baggage != "k8s.namespace.name=x" {
		t.Fatal(resp, err)
	}
	var want []byte
	for i := range 200 {
		want = append(want, bytes.Repeat([]byte{byte(i)}, i)...)
	}
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want %d", len(got), err, len(want))
	}
}

// GOAWAY: streams that the server did not take on may be tried elsewhere, the
// others go on.
func TestGoAwaySplitsStreams(t *testing.T) {
	t.Parallel()
	p, c := dialRaw(t)
	p.settings()
	type result struct {
		s   *stream
		err error
	}
	results := make([]chan result, 2)
	for i := range results {
		results[i] = make(chan result, 1)
		if !c.reserveSlot(100) {
			t.Fatal("no slot")
		}
		go func() {
			s, _, err := c.open(context.Background(), request("10.0.0.1:80"))
			results[i] <- result{s, err}
		}()
		p.wants("HEADERS ")
	}
	_ = p.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	p.headers(1, false, ":status", "200")
	_ = p.fr.WriteData(1, true, []byte("done"))
	first, second := <-results[0], <-results[1]
	if first.err != nil {
		t.Fatalf("first stream: %v", first.err)
	}
	if b, err := io.ReadAll(first.s); string(b) != "done" || err != nil {
		t.Errorf("first stream read %q, %v", b, err)
	}
	if !errors.Is(second.err, errRefused) {
		t.Errorf("second stream: %v", second.err)
	}
	if c.reserveSlot(100) {
		t.Error("a slot on a connection that goes away")
	}
	_ = first.s.Close()
	for range p.hear { // until the client closes, having no streams left
	}
}

func TestFrameHeader(t *testing.T) {
	t.Parallel()
	f := appendFrame(nil, http2.FrameData, 5, 7, []byte("abc"))
	if h := parseFrameHeader(f); h != (frameHeader{3, http2.FrameData, 5, 7}) {
		t.Errorf("parsed %+v", h)
	}
	w := appendWindowUpdate(nil, 9, 1<<20)
	if n := binary.BigEndian.Uint32(w[9:]); n != 1<<20 {
		t.Errorf("window update of %d", n)
	}
}
