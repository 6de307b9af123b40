package warm

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// Main checks that warm goroutines end by themselves.
func TestMain(m *testing.M) { runtest.Main(m) }

func TestDo(t *testing.T) {
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 4 * spare {
		wg.Go(func() {
			for range 50 {
				did := false
				Do(func() { did = true; n.Add(1) })
				if !did {
					t.Error("returned before the work was done")
				}
			}
		})
	}
	wg.Wait()
	if got := n.Load(); got != 4*spare*50 {
		t.Errorf("%d pieces of work were done", got)
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	if n := len(all.idle); n == 0 || n > spare {
		t.Errorf("%d goroutines wait, want 1 to %d", n, spare)
	}
}

// The same goroutine works again, so its stack stays grown.
func TestReused(t *testing.T) {
	last := func() *worker {
		all.mu.Lock()
		defer all.mu.Unlock()
		return all.idle[len(all.idle)-1]
	}
	Do(func() {})
	first := last()
	Do(func() {})
	if last() != first {
		t.Error("a second piece of work went to another goroutine")
	}
}

func TestWorkThatEndsItsGoroutine(t *testing.T) {
	for range 3 {
		Do(runtime.Goexit)
	}
	did := false
	Do(func() { did = true })
	if !did {
		t.Error("the goroutine was not replaced")
	}
}

func TestSweep(t *testing.T) {
	var p pool
	p.timed = true // we are the timer
	ended := make(chan struct{})
	for range 3 {
		w := &worker{work: make(chan func(), 1), done: make(chan struct{}, 1)}
		go func() { w.run(); ended <- struct{}{} }()
		p.put(w)
	}
	p.sweep() // they have worked since the last one
	if len(p.idle) != 3 || p.unused != 3 {
		t.Fatalf("%d left, %d unused, want 3 and 3", len(p.idle), p.unused)
	}
	p.put(p.take())
	p.sweep()
	<-ended
	<-ended
	if len(p.idle) != 1 {
		t.Fatalf("%d left, want the one that worked", len(p.idle))
	}
	p.sweep()
	<-ended
	if len(p.idle) != 0 || p.timed {
		t.Errorf("%d left, timed %v", len(p.idle), p.timed)
	}
}

func BenchmarkDo(b *testing.B) {
	b.ReportAllocs()
	f := func() {}
	for b.Loop() {
		Do(f)
	}
}
