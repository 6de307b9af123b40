package h2

import (
	"sync"
	"testing"
)

// Many streams move bulk both ways at once; each gets its own bytes back and
// ends in good order.
func TestManyBulkStreams(t *testing.T) {
	t.Parallel()
	const streams, size = 40, 2 << 20
	m := newMesh(t, pumpTo)
	addr := app(t, echo)
	var wg sync.WaitGroup
	for i := range streams {
		client, ended := m.through(t, addr, nil)
		wg.Go(func() {
			sent := make(chan [32]byte, 1)
			go func() { sent <- send(t, client, byte(i), size) }()
			if got := receive(client); got != <-sent {
				t.Errorf("stream %d: bytes came back changed", i)
			}
			if err := <-ended; err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}
