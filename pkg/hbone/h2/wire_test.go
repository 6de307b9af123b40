package h2

import (
	"context"
	"io"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// fields returns a header section as "name: value", in its order.
func fields(f *http2.MetaHeadersFrame) []string {
	var list []string
	for _, h := range f.Fields {
		list = append(list, h.Name+": "+h.Value)
	}
	return list
}

// A CONNECT has these fields on the wire and no others.
func TestConnectOnTheWire(t *testing.T) {
	t.Parallel()
	a, b := hbonetest.TCPPair(t)
	c := newConn(&plain{Conn: a}, true, Settings{}, nil, nil)
	c.greet(0)
	go func() { _ = c.run() }()
	if !c.reserveSlot(1) {
		t.Fatal("no slot")
	}
	go func() {
		_, _, _ = c.open(t.Context(), hbone.Request{Authority: "10.0.0.1:80", Header: hbone.Header{
			Baggage: "k8s.namespace.name=a", Forwarded: `for="10.0.0.2:1"`, Traceparent: "00-1-2-00", Network: "east",
			Extra: []hbone.Field{{Name: "x-istio-source", Value: "gateway"}},
		}})
	}()
	if _, err := io.ReadFull(b, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(io.Discard, b)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		want := []string{":method: CONNECT", ":authority: 10.0.0.1:80", "baggage: k8s.namespace.name=a",
			`forwarded: for="10.0.0.2:1"`, "traceparent: 00-1-2-00", "x-forwarded-network: east", "x-istio-source: gateway"}
		if got := fields(h); !slices.Equal(got, want) || h.StreamEnded() {
			t.Errorf("sent %q, ended %v, want %q", got, h.StreamEnded(), want)
		}
		return
	}
}

// The fields of a CONNECT from elsewhere reach the handler, and its answer has
// the status and the baggage.
func TestConnectFromTheWire(t *testing.T) {
	t.Parallel()
	got := make(chan hbone.Request, 1)
	a, b := hbonetest.TCPPair(t)
	c := newConn(&plain{Conn: a}, false, Settings{}, nil, nil)
	c.serverSide = serverSide{ctx: t.Context(), maxStreams: 20, handler: func(_ context.Context, in *hbone.Incoming) {
		got <- in.Request
		if s, err := in.Accept(hbone.Response{Baggage: "k8s.namespace.name=b"}); err == nil {
			<-s.Done()
		}
	}}
	c.greet(20)
	go func() { _ = c.run() }()
	p := &rawPeer{t: t, c: b, fr: http2.NewFramer(b, b)}
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	_, _ = io.WriteString(b, http2.ClientPreface)
	p.settings()
	p.headers(1, false, ":method", "CONNECT", ":authority", "[fd00::1]:80", "baggage", "k8s.namespace.name=a",
		"forwarded", `for="10.0.0.2:1"`, "traceparent", "00-1-2-00", "x-forwarded-network", "east", "x-other", "y")
	r := <-got
	want := hbone.Header{Baggage: "k8s.namespace.name=a", Forwarded: `for="10.0.0.2:1"`, Traceparent: "00-1-2-00", Network: "east",
		Extra: []hbone.Field{{Name: "x-other", Value: "y"}}}
	if h := r.Header; r.Authority != "[fd00::1]:80" || h.Baggage != want.Baggage || h.Forwarded != want.Forwarded ||
		h.Traceparent != want.Traceparent || h.Network != want.Network || !slices.Equal(h.Extra, want.Extra) {
		t.Errorf("the handler got %+v, want %+v", r, want)
	}
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			if want := []string{":status: 200", "baggage: k8s.namespace.name=b"}; !slices.Equal(fields(h), want) {
				t.Errorf("answered %q, want %q", fields(h), want)
			}
			return
		}
	}
}

// What arrives for a stream that has been refused or reset is credited to the
// connection all the same: else it would stop all the others.
func TestRefusedDataIsCredited(t *testing.T) {
	t.Parallel()
	p, c := serveRaw(t, func(_ context.Context, in *hbone.Incoming) { _ = in.Reject(401) })
	p.settings()
	p.connect(1)
	p.wants("HEADERS 401")
	for range 3 * c.settings.ConnWindow / len(big) {
		p.raw(http2.FrameData, 0, 1, big)
	}
	p.connect(3)
	p.wants("HEADERS 401")
}

// What arrives for a stream whose destination has gone is credited to the
// connection as well.
func TestDroppedDataIsCredited(t *testing.T) {
	t.Parallel()
	c, s, transport := heldConn(1)
	close(transport.release)
	s[0].drop = true
	const piece = 64 << 10
	for range 4 * c.settings.ConnWindow / piece {
		c.mu.Lock()
		fits := c.window.receive(piece)
		c.mu.Unlock()
		if !fits {
			t.Fatal("the connection's window is not given back")
		}
		s[0].deliver([][]byte{make([]byte, piece)})
	}
}
