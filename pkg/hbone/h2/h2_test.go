package h2

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

func TestEcho(t *testing.T) {
	t.Parallel()
	m := newMesh(t, pumpTo)
	s := m.open(t, app(t, echo))
	msg := make([]byte, 3<<20)
	_, _ = rand.Read(msg)
	go func() {
		if _, err := s.Write(msg); err != nil {
			t.Error(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, msg) {
		t.Fatalf("echo differs: %d bytes of %d", len(got), len(msg))
	}
	<-s.Done()
}

// A large file both ways at once through two pumps arrives whole, each direction
// ended by its own FIN.
func TestPumpBothWays(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	m := newMesh(t, pumpTo)
	sums := make(chan [32]byte, 2)
	addr := app(t, func(c *net.TCPConn) {
		var wg sync.WaitGroup
		wg.Go(func() { sums <- receive(c) })
		send(t, c, 2, size)
		wg.Wait()
	})
	var n hbone.Counters
	client, ended := m.through(t, addr, &n)
	var wg sync.WaitGroup
	var sent [32]byte
	wg.Go(func() { sent = send(t, client, 1, size) })
	got := receive(client)
	wg.Wait()
	if want := sum(2, size); got != want {
		t.Error("what the application sent arrived changed")
	}
	if <-sums != sent {
		t.Error("what the client sent arrived changed")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n.Sent.Load() != size || n.Received.Load() != size {
		t.Errorf("counted %d sent, %d received; want %d", n.Sent.Load(), n.Received.Load(), size)
	}
}

// send writes size bytes made from seed, ends its direction and returns their sum.
func send(t testing.TB, c *net.TCPConn, seed byte, size int) [32]byte {
	h := sha256.New()
	p := pattern(seed)
	for left := size; left > 0; {
		k := min(left, len(p))
		h.Write(p[:k])
		if _, err := c.Write(p[:k]); err != nil {
			t.Error(err)
			break
		}
		left -= k
	}
	_ = c.CloseWrite()
	return [32]byte(h.Sum(nil))
}

func sum(seed byte, size int) [32]byte {
	h := sha256.New()
	p := pattern(seed)
	for left := size; left > 0; left -= len(p) {
		h.Write(p[:min(left, len(p))])
	}
	return [32]byte(h.Sum(nil))
}

func pattern(seed byte) []byte {
	p := make([]byte, 100_003) // no multiple of anything here
	for i := range p {
		p[i] = byte(i)*31 + byte(i>>8)*7 + seed
	}
	return p
}

func receive(c io.Reader) [32]byte {
	h := sha256.New()
	_, _ = io.Copy(h, c)
	return [32]byte(h.Sum(nil))
}
