package h2

import (
	"context"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// TestLeaving holds that whoever has streams on a connection learns that its peer
// is about to end.
func TestLeaving(t *testing.T) {
	t.Parallel()
	told := make(chan hbone.Peer, 4)
	m := newMesh(t, func(ctx context.Context, in *hbone.Incoming) {
		if s, err := in.Accept(hbone.Response{}); err == nil {
			<-s.Done()
		}
	}, func(p *PoolConfig, _ *ServerConfig) {
		p.ConnLeaving = func(to hbone.Peer) { told <- to }
	})
	s := m.open(t, "10.0.0.1:80")
	if s.Leaving() {
		t.Error("the connection is new and leaves")
	}
	m.server.Retire()
	if to := <-told; to.Addr != m.peer.Addr {
		t.Errorf("told of %v", to.Addr)
	}
	if !s.Leaving() {
		t.Error("the server retires, and the stream does not know")
	}
	next := m.open(t, "10.0.0.1:80")
	if next.Leaving() {
		t.Error("the next stream is on the connection that leaves")
	}
	_ = s.Close()
	_ = next.Close()
}
