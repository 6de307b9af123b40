package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGCPercent(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{0: 100, 8 << 20: 100, garbage: 100, 2 * garbage: 50, 4 * garbage: 25, 1 << 30: leastPercent} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes alive: %d %%, want %d", live, got, want)
		}
	}
}

// A large heap is collected sooner, and what it leaves is given back once it is
// quiet. Not parallel: the collector is everybody's.
func TestMemoryIsGivenBack(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	m := memory{percent: 100}
	large := make([][]byte, 2*garbage>>16)
	for i := range large {
		large[i] = make([]byte, 1<<16)
	}
	runtime.GC()
	m.look()
	if m.percent > 50 {
		t.Errorf("collector at %d %% with %d MB alive", m.percent, 2*garbage>>20)
	}
	runtime.KeepAlive(large)
	large = make([][]byte, 2*hoard>>16)
	for i := range large {
		large[i] = make([]byte, 1<<16)
	}
	runtime.KeepAlive(large)
	large = nil
	runtime.GC()
	m.look() // much was allocated since the last look
	if m.unused <= hoard {
		t.Fatalf("%d MB unused, want more than %d", m.unused>>20, hoard>>20)
	}
	m.look()
	m.look()
	if m.unused > hoard {
		t.Errorf("%d MB are still kept", m.unused>>20)
	}
	if m.percent != 100 {
		t.Errorf("collector at %d %% again", m.percent)
	}
}

func TestTendingEnds(t *testing.T) {
	before := debug.SetGCPercent(70)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := tendMemory(ctx); err != nil {
		t.Error(err)
	}
	if got := debug.SetGCPercent(70); got != 70 {
		t.Errorf("GOGC is %d, was 70", got)
	}
}
