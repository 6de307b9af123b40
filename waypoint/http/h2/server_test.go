package h2

import (
	"context"
	"net"
	stdhttp "net/http"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
)

// pipe is a stream without a network.
type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return nil }
func (p pipe) Reset()            { _ = p.Close() }

// A connection that comes while the waypoint drains ends too: its client is served, or
// told to go elsewhere.
func TestDrainBeforeServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		nobody := netip.MustParseAddrPort("192.0.2.1:1")
		s := NewServer(pipe{server}, nil, nobody, nobody, h1.Options{}, func(*Stream) {})
		s.Drain()
		synctest.Wait()
		ended := make(chan struct{})
		go func() { s.Serve(t.Context()); close(ended) }()
		tr := &stdhttp.Transport{Protocols: onlyHTTP2(), DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil }}
		r, err := stdhttp.NewRequestWithContext(t.Context(), "GET", "http://cart/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := tr.RoundTrip(r); err == nil {
			resp.Body.Close()
		}
		<-ended
	})
}

// A policy compares what an endpoint takes a field's value for.
func TestSpaceAroundValues(t *testing.T) {
	t.Parallel()
	st := &Stream{r: &stdhttp.Request{Method: "GET", RequestURI: "/", Host: "cart", Header: stdhttp.Header{"X-Role": {" \tadmin "}}}, limits: h1.Limits{}.OrDefault()}
	var req http.Request
	if err := st.ReadRequest(&req); err != nil {
		t.Fatal(err)
	}
	if role, _ := req.Header.Get("x-role"); string(role) != "admin" {
		t.Errorf("x-role is %q", role)
	}
}
