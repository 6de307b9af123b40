package relay_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

// relayed returns a client and a server with a running Copy between them.
func relayed(t testing.TB, ctx context.Context, n *relay.Counters) (client, server *net.TCPConn, ended chan error) {
	client, a := hbonetest.TCPPair(t)
	b, server := hbonetest.TCPPair(t)
	ended = make(chan error, 1)
	go func() { ended <- relay.Copy(ctx, a, b, n); _ = a.Close(); _ = b.Close() }()
	return client, server, ended
}

func TestBothWays(t *testing.T) {
	t.Parallel()
	const size = 50 << 20
	var n relay.Counters
	client, server, ended := relayed(t, t.Context(), &n)
	var wg sync.WaitGroup
	var sums [4][32]byte
	wg.Go(func() { sums[0] = send(client, 1, size) })
	wg.Go(func() { sums[1] = receive(server) })
	wg.Go(func() { sums[2] = send(server, 2, size) })
	wg.Go(func() { sums[3] = receive(client) })
	wg.Wait()
	if sums[0] != sums[1] || sums[2] != sums[3] {
		t.Error("bytes arrived changed")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n.Sent.Load() != size || n.Received.Load() != size {
		t.Errorf("counted %d, %d", n.Sent.Load(), n.Received.Load())
	}
}

func send(c *net.TCPConn, seed byte, size int) [32]byte {
	h := sha256.New()
	p := make([]byte, 77_777)
	for i := range p {
		p[i] = byte(i)*13 + seed
	}
	for left := size; left > 0; left -= len(p) {
		p := p[:min(left, len(p))]
		h.Write(p)
		if _, err := c.Write(p); err != nil {
			break
		}
	}
	_ = c.CloseWrite()
	return [32]byte(h.Sum(nil))
}

func receive(c *net.TCPConn) [32]byte {
	h := sha256.New()
	_, _ = io.Copy(h, c)
	return [32]byte(h.Sum(nil))
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	client, server, ended := relayed(t, t.Context(), nil)
	_ = client.CloseWrite()
	if b, err := io.ReadAll(server); len(b) != 0 || err != nil {
		t.Fatal(b, err)
	}
	_, _ = server.Write([]byte("still open"))
	_ = server.CloseWrite()
	if b, err := io.ReadAll(client); string(b) != "still open" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Counters move while the connection is open.
func TestLiveCounters(t *testing.T) {
	t.Parallel()
	var n relay.Counters
	client, server, ended := relayed(t, t.Context(), &n)
	go func() { _, _ = io.Copy(io.Discard, server); _ = server.CloseWrite() }()
	_, _ = client.Write([]byte("a few bytes"))
	hbonetest.Until(t, "the counter to move", func() bool { return n.Sent.Load() == 11 })
	_ = client.CloseWrite()
	if err := <-ended; err != nil || n.Sent.Load() != 11 {
		t.Error(err, n.Sent.Load())
	}
}

// A reset on one side is an ordinary end on the other, and ends the relay, whether
// or not the other side has anything to say.
func TestReset(t *testing.T) {
	t.Parallel()
	for _, serverResets := range []bool{false, true} {
		client, server, ended := relayed(t, t.Context(), nil)
		a, b := client, server
		if serverResets {
			a, b = server, client
		}
		_, _ = a.Write([]byte("x"))
		_, _ = io.ReadFull(b, make([]byte, 1))
		_ = a.SetLinger(0)
		_ = a.Close()
		if p, err := io.ReadAll(b); len(p) != 0 || err != nil {
			t.Errorf("the other side read %q, %v", p, err)
		}
		if err := <-ended; err != nil { // b is still open
			t.Error(err)
		}
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	client, server, ended := relayed(t, ctx, nil)
	cause := errors.New("policy changed")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("copy: %v", err)
	}
	for _, c := range []*net.TCPConn{client, server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}

func TestNothingLeft(t *testing.T) {
	before := hbonetest.FDs(t)
	t.Run("copies", func(t *testing.T) {
		for range 20 {
			client, server, ended := relayed(t, t.Context(), nil)
			_ = client.Close()
			_ = server.Close()
			<-ended
		}
	})
	hbonetest.Until(t, "goroutines to end", func() bool { return hbonetest.Goroutines("relay.(*direction)") == 0 })
	hbonetest.Until(t, "descriptors to close", func() bool { return hbonetest.FDs(t) <= before+2*16 }) // the spare pipes
}

// A connection that waits holds no pipe.
func TestIdleHoldsNoPipe(t *testing.T) {
	const copies = 40
	before := hbonetest.FDs(t)
	for range copies {
		client, server, _ := relayed(t, t.Context(), nil)
		_, _ = client.Write([]byte("x"))
		_, _ = io.ReadFull(server, make([]byte, 1))
	}
	hbonetest.Until(t, "pipes to be given back", func() bool { return hbonetest.FDs(t)-before <= 4*copies+2*16 })
}
