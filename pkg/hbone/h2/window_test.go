package h2

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// A window that passes in less than two round trips doubles, as far as the
// budget and its maximum allow; a slow one does not.
func TestWindowGrowth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 10 * time.Millisecond
		budget := hbone.NewBudget(500)
		w := newRecvWindow(100, 1000)
		w.epoch = time.Now()
		transfer := func(size int, took time.Duration) {
			t.Helper()
			for range 2 {
				if !w.receive(size / 2) {
					t.Fatal("window too small for half of itself")
				}
				time.Sleep(took / 2)
				w.consume(size/2, rtt, budget)
			}
		}
		transfer(100, 3*rtt)
		if w.size != 100 {
			t.Errorf("grew to %d on a slow stream", w.size)
		}
		for _, want := range []int{200, 400, 400} { // the budget does not allow 800
			transfer(w.size, rtt)
			if w.size != want || w.avail != want {
				t.Errorf("window of %d, %d available; want %d", w.size, w.avail, want)
			}
		}
		if used, _ := budget.Used(); used != 300 {
			t.Errorf("%d taken from the budget", used)
		}
		w.release(budget)
		if used, _ := budget.Used(); used != 0 {
			t.Errorf("%d kept of the budget", used)
		}
		if w.receive(401) {
			t.Error("received more than the window")
		}
	})
}

// Without a measured round trip nothing grows.
func TestWindowWithoutRoundTrip(t *testing.T) {
	t.Parallel()
	w := newRecvWindow(100, 1000)
	for range 10 {
		w.receive(50)
		w.consume(50, 0, nil)
	}
	if w.size != 100 || w.avail != 100 {
		t.Errorf("window of %d, %d available", w.size, w.avail)
	}
}

// What queues on the way does not count as distance.
func TestShortestRoundTrip(t *testing.T) {
	t.Parallel()
	var c conn
	for _, step := range []struct{ rtt, want time.Duration }{{0, 0}, {300, 300}, {9000, 300}, {200, 200}, {5000, 200}} {
		c.rtt.Store(int64(step.rtt))
		if got := c.shortest(); got != step.want {
			t.Errorf("with a round trip of %v now: %v, want %v", step.rtt, got, step.want)
		}
	}
}

// A connection on which streams queue for long is passed over, and another is
// worth having until there are a few.
func TestChooseAvoidsSlow(t *testing.T) {
	t.Parallel()
	slow, quick := bareConn(2), bareConn(2)
	slow.queueing = time.Second
	e := &entry{conns: []*conn{slow}}
	if c, more := e.choose(100); c != slow || !more {
		t.Errorf("only a slow connection: %p, %v", c, more)
	}
	e.conns = append(e.conns, quick)
	if c, more := e.choose(100); c != quick || more {
		t.Errorf("a slow and a quick connection: %p, %v", c, more)
	}
	quick.queueing = time.Second
	e.conns = append(e.conns, e.conns...)
	if _, more := e.choose(100); more {
		t.Error("queueing opens connections without an end")
	}
	full := bareConn(95)
	e.conns = []*conn{full}
	if c, more := e.choose(100); c != full || !more {
		t.Errorf("a connection near its limit: %p, %v", c, more)
	}
}

// bareConn is a client's connection with so many streams and nothing below it.
func bareConn(streams uint32) *conn {
	c := &conn{streams: make(map[uint32]*stream)}
	c.peerStreams = 100
	for i := range streams {
		c.streams[2*i+1] = nil
	}
	return c
}
