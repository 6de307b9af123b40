package h2

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// verdict is a Recheck whose answer changes.
type verdict struct{ revoked atomic.Bool }

func (v *verdict) check(peer []*x509.Certificate) error {
	if len(peer) == 0 {
		return reason.New(reason.Internal, "recheck", "", nil)
	}
	if v.revoked.Load() {
		return reason.New(reason.CertRevoked, "recheck", "", nil)
	}
	return nil
}

// echoes serves streams until they end and tells why each did.
func echoes(ended chan<- error) hbone.Handler {
	return func(ctx context.Context, in *hbone.Incoming) {
		s, err := in.Accept(hbone.Response{})
		if err == nil {
			_, err = io.Copy(s, s)
			_ = s.Close()
		}
		ended <- err
	}
}

// TestRecheck: whichever side no longer accepts its peer, its streams end with that
// reason and the other side's do end; new ones are refused until it accepts again.
func TestRecheck(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			var v verdict
			ended := make(chan error, 10)
			m := newMesh(t, echoes(ended), func(pc *PoolConfig, sc *ServerConfig) {
				if side == "client" {
					pc.Recheck = v.check
				} else {
					sc.Recheck = v.check
				}
			})
			recheck := func() { m.pool.Recheck(); m.server.Recheck() }
			s := m.open(t, "x:1")
			hello(t, s)
			recheck()
			hello(t, s)

			v.revoked.Store(true)
			recheck()
			_, err := s.Read(make([]byte, 1))
			if err == nil || side == "client" && reason.Of(err) != reason.CertRevoked {
				t.Errorf("the client's stream ended with %v", err)
			}
			if err := <-ended; side == "server" && reason.Of(err) != reason.CertRevoked {
				t.Errorf("the server's stream ended with %v", err)
			}
			if s, _, err := m.pool.Open(t.Context(), m.peer, request("x:1")); err == nil {
				if _, err = s.Read(make([]byte, 1)); err == nil {
					t.Error("a new stream to a peer that is not accepted")
				}
			}
			v.revoked.Store(false)
			until(t, "new streams", func() bool {
				s, _, err := m.pool.Open(t.Context(), m.peer, request("x:1"))
				if err != nil {
					return false
				}
				defer s.Close()
				_, err = io.WriteString(s, "x")
				if err == nil {
					_, err = io.ReadFull(s, make([]byte, 1))
				}
				return err == nil
			})
		})
	}
}

func hello(t *testing.T, s hbone.Stream) {
	t.Helper()
	if _, err := io.WriteString(s, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

// TestRecheckOver: a tunnel in a tunnel is found as well.
func TestRecheckOver(t *testing.T) {
	var v verdict
	ended := make(chan error, 10)
	inner := newMesh(t, echoes(ended))
	gateway := newMesh(t, forwardTo(inner), func(pc *PoolConfig, _ *ServerConfig) {
		outer := true // only the peer of the inner tunnel is revoked
		pc.Recheck = func(peer []*x509.Certificate) error {
			if outer {
				outer = false
				return nil
			}
			return v.check(peer)
		}
	})
	carrier := gateway.carrier(t)
	s, _, _, err := gateway.pool.OpenOver(t.Context(), carrier, inner.ca.Client(t, clientID, serverID), request("x:1"))
	if err != nil {
		t.Fatal(err)
	}
	hello(t, s)
	v.revoked.Store(true)
	gateway.pool.mu.Lock()
	entries := gateway.pool.entries
	gateway.pool.entries = nil // so that the inner one alone is asked about
	gateway.pool.mu.Unlock()
	gateway.pool.Recheck()
	gateway.pool.mu.Lock()
	gateway.pool.entries = entries
	gateway.pool.mu.Unlock()
	if _, err := s.Read(make([]byte, 1)); reason.Of(err) != reason.CertRevoked {
		t.Errorf("the inner stream ended with %v", err)
	}
	<-ended
	until(t, "the connection to be forgotten", func() bool {
		gateway.pool.mu.Lock()
		defer gateway.pool.mu.Unlock()
		return len(gateway.pool.over) == 0
	})
}

// TestExpire: a connection whose peer's certificate has ended carries its streams
// on and takes no more; a new one needs a certificate that is good.
func TestExpire(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			ended := make(chan error, 10)
			var changing atomic.Pointer[tls.Config] // of that side
			m := newMesh(t, echoes(ended), func(pc *PoolConfig, sc *ServerConfig) {
				if side == "client" {
					pc.TLS = func(context.Context, hbone.Peer) (*tls.Config, error) { return changing.Load(), nil }
				} else {
					sc.TLS = func(context.Context) (*tls.Config, error) { return changing.Load(), nil }
				}
			})
			id, good := clientID, m.ca.Client(t, clientID, serverID)
			if side == "server" {
				id, good = serverID, m.ca.Server(t, serverID)
			}
			short := good.Clone()
			short.Certificates = []tls.Certificate{m.ca.CertificateUntil(t, id, time.Now().Add(1500*time.Millisecond))}
			changing.Store(short)
			s := m.open(t, "x:1")
			defer s.Close()
			hello(t, s)
			until(t, "the connection to take no more streams", func() bool {
				m.pool.mu.Lock()
				defer m.pool.mu.Unlock()
				for _, e := range m.pool.entries {
					for _, c := range e.conns {
						return c.leaving()
					}
				}
				return true
			})
			hello(t, s)
			if s, _, err := m.pool.Open(t.Context(), m.peer, request("x:1")); err == nil {
				if _, err = s.Read(make([]byte, 1)); err == nil {
					t.Error("a new stream with a certificate that has ended")
				}
			}
			changing.Store(good)
			until(t, "a new stream", func() bool {
				again, _, err := m.pool.Open(t.Context(), m.peer, request("x:1"))
				if err == nil {
					hello(t, again)
					_ = again.Close()
				}
				return err == nil
			})
			hello(t, s)
		})
	}
}
