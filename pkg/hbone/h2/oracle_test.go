//lint:file-ignore SA1019 x/net/http2's own Transport and Server are what we compare with

package h2

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Our pool against x/net/http2's server: many streams at once, large bodies
// both ways, statuses.
func TestPoolAgainstXNetServer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	m.peer = peerAt(t, xnetServer(t, m.ca))
	addr := app(t, echo)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { echoThrough(t, m.open(t, addr), 700_000) })
	}
	wg.Wait()

	_, _, err := m.pool.Open(context.Background(), m.peer, request("127.0.0.1:1"))
	var status *hbone.StatusError
	if !errors.As(err, &status) || status.Status != 503 || reason.Of(err) != reason.TunnelStatus {
		t.Errorf("CONNECT to a closed port: %v", err)
	}
}

func peerAt(t *testing.T, addr string) hbone.Peer {
	t.Helper()
	a, err := hbone.ParseAuthority(addr)
	if err != nil {
		t.Fatal(err)
	}
	return hbone.Peer{Source: clientID, Expect: []mesh.Identity{serverID}, Addr: addrPort(a)}
}

// echoThrough sends size random bytes and wants them back, then the end.
func echoThrough(t *testing.T, s io.ReadWriteCloser, size int) {
	msg := make([]byte, size)
	_, _ = rand.Read(msg)
	go func() {
		_, err := s.Write(msg)
		if half, ok := s.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, msg) {
		t.Errorf("echo of %d bytes: %d came back, %v", size, len(got), err)
	}
	_ = s.Close()
}

// x/net/http2's transport against our server.
func TestXNetTransportAgainstServer(t *testing.T) {
	t.Parallel()
	var seen sync.Map
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		seen.Store(in.Request.Header.Baggage, in.Peer)
		pumpTo(ctx, in)
	})
	rt := xnetTransport(t, m.ca)
	addr := app(t, echo)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { xnetEcho(t, rt, m.peer.Addr.String(), addr, 700_000) })
	}
	wg.Wait()
	if id, _ := seen.Load("service.name=client"); id != clientID {
		t.Errorf("server saw %v under the client's baggage", id)
	}
	for authority, want := range map[string]int{"127.0.0.1:1": 503, "not-an-address": 400} {
		resp, err := rt.RoundTrip(xnetConnect(m.peer.Addr.String(), authority, http.NoBody))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("CONNECT %q: %d, want %d", authority, resp.StatusCode, want)
		}
	}
}

func xnetEcho(t *testing.T, rt *http2.Transport, server, authority string, size int) {
	msg := make([]byte, size)
	_, _ = rand.Read(msg)
	resp, err := rt.RoundTrip(xnetConnect(server, authority, io.NopCloser(bytes.NewReader(msg))))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Baggage") != "service.name=app" {
		t.Errorf("response %d, baggage %q", resp.StatusCode, resp.Header.Get("Baggage"))
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, msg) {
		t.Errorf("echo of %d bytes: %d came back, %v", size, len(got), err)
	}
}

// A GET is not a CONNECT.
func TestServerRefusesOtherMethods(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	req, err := http.NewRequest("GET", "https://"+m.peer.Addr.String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := xnetTransport(t, m.ca).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("GET: %d, want 400", resp.StatusCode)
	}
}

// A peer with another identity, and one of another CA, are refused with a reason.
func TestPoolChecksIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	stranger := newMesh(t, pumpTo)
	to := m.peer
	to.Addr = stranger.peer.Addr
	if _, _, err := m.pool.Open(context.Background(), to, request("127.0.0.1:1")); reason.Of(err) != reason.TLSFailure {
		t.Errorf("server of another CA: %v", err)
	}
	other := newMesh(t, pumpTo, func(pc *PoolConfig, sc *ServerConfig) {})
	cfg := other.ca.Client(t, clientID, hbonetest.Identity("somebody"))
	p := NewPool(PoolConfig{Dial: dialTCP, TLS: constantTLS(cfg)})
	defer p.Close()
	if _, _, err := p.Open(context.Background(), other.peer, request("127.0.0.1:1")); reason.Of(err) != reason.IdentityMismatch {
		t.Errorf("server of another identity: %v", err)
	}
}
