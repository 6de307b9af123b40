package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// overMesh is a tunnel to a gateway that forwards every stream to the mesh's
// server as it is.
func overMesh(t *testing.T) (gateway, inner *testMesh) {
	inner = newMesh(t, pumpTo)
	return newMesh(t, forwardTo(inner)), inner
}

// forwardTo is a gateway's handler.
func forwardTo(inner *testMesh) func(context.Context, *hbone.Incoming) {
	return func(ctx context.Context, in *hbone.Incoming) {
		conn, err := dialTCP(ctx, inner.peer.Addr)
		if err != nil {
			_ = in.Reject(503)
			return
		}
		defer conn.Close()
		if s, err := in.Accept(hbone.Response{}); err == nil {
			_ = s.Pump(ctx, conn, nil)
		}
	}
}

func (m *testMesh) carrier(t *testing.T) net.Conn {
	t.Helper()
	return hbone.NetConn(m.open(t, "service.example:80"))
}

// TestOver moves bytes, and the end of each direction, through a tunnel in a
// tunnel, and holds that both connections are given back.
func TestOver(t *testing.T) {
	gateway, inner := overMesh(t)
	cfg := inner.ca.Client(t, clientID, serverID)
	target := app(t, func(c *net.TCPConn) {
		text, _ := io.ReadAll(c)
		_, _ = c.Write(text)
		_ = c.CloseWrite()
	})
	before := runtime.NumGoroutine()
	for range 5 {
		s, resp, who, err := gateway.pool.OpenOver(t.Context(), gateway.carrier(t), cfg, request(target))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Baggage != "service.name=app" || who != serverID {
			t.Errorf("answered by %v with %+v", who, resp)
		}
		sent := strings.Repeat("through two tunnels ", 1<<16)
		go func() {
			_, _ = io.WriteString(s, sent)
			_ = s.CloseWrite()
		}()
		got, err := io.ReadAll(s)
		if err != nil || string(got) != sent {
			t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
		}
		_ = s.Close()
	}
	until(t, "the inner connections to end", func() bool {
		inner.server.mu.Lock()
		defer inner.server.mu.Unlock()
		return len(inner.server.conns) == 0
	})
	until(t, "the outer streams to end", func() bool {
		snapshot := gateway.pool.Snapshot()
		return len(snapshot) == 1 && snapshot[0].Streams == 0
	})
	until(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+10 }) // of the outer connection
}

// TestOverRefused holds that who is not expected does not answer, that a refusal
// is told, and that nothing stays open after either.
func TestOverRefused(t *testing.T) {
	gateway, inner := overMesh(t)
	_, _, _, err := gateway.pool.OpenOver(t.Context(), gateway.carrier(t), inner.ca.Client(t, clientID, hbonetest.Identity("other")), request("127.0.0.1:1"))
	if reason.Of(err) != reason.IdentityMismatch {
		t.Errorf("another identity answers: %v", err)
	}
	_, _, _, err = gateway.pool.OpenOver(t.Context(), gateway.carrier(t), inner.ca.Client(t, clientID, []mesh.Identity{serverID}...), request("nobody:1"))
	var status *hbone.StatusError
	if !errors.As(err, &status) || status.Status != 400 {
		t.Errorf("a refused CONNECT: %v", err)
	}
	until(t, "the outer streams to end", func() bool {
		snapshot := gateway.pool.Snapshot()
		return len(snapshot) == 1 && snapshot[0].Streams == 0
	})
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
