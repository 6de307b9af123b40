package h2

import (
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// recvWindow is what a peer may still send us, on a stream or on the whole
// connection. It grows while a window's worth of bytes passes in less than two
// round trips, for then it is the window that limits the sender. The round trip is
// the shortest that was seen: one that includes what queues on the way would let
// windows grow with the queues that they make, and every request wait behind them.
type recvWindow struct {
	size   int       // what the peer may have in flight
	max    int       // what size may grow to
	avail  int       // what the peer may send now
	unsent int       // consumed and not yet credited
	grown  int       // taken from the budget
	seen   int       // consumed in this epoch
	epoch  time.Time // when the epoch began
}

// jitter is what a window covers however short the round trip: the time that the
// two ends' schedulers may take.
const jitter = 2 * time.Millisecond

func newRecvWindow(size, most int) recvWindow {
	return recvWindow{size: size, max: most, avail: size}
}

// receive takes n arrived bytes off the window; false if it was too small.
func (w *recvWindow) receive(n int) bool {
	w.avail -= n
	return w.avail >= 0
}

// consume notes n bytes as delivered and returns the credit to send, often 0.
func (w *recvWindow) consume(n int, rtt time.Duration, budget *hbone.Budget) int {
	w.unsent += n
	w.seen += n
	if w.unsent < w.size/2 {
		return 0
	}
	credit := w.unsent + w.grow(rtt, budget)
	w.unsent = 0
	w.avail += credit
	return credit
}

// grow returns by how much the window became larger.
func (w *recvWindow) grow(rtt time.Duration, budget *hbone.Budget) int {
	if w.seen < w.size {
		return 0
	}
	now := time.Now()
	took := now.Sub(w.epoch)
	w.epoch, w.seen = now, 0
	more := min(w.size, w.max-w.size)
	if rtt == 0 || took > 2*max(rtt, jitter) || more <= 0 || !budget.Take(int64(more)) {
		return 0
	}
	w.size += more
	w.grown += more
	return more
}

// reserve takes the window as it is from the budget, whether or not there is room:
// the peer has it already.
func (w *recvWindow) reserve(budget *hbone.Budget) {
	budget.Force(int64(w.size))
	w.grown += w.size
}

// release returns to the budget what the window took from it.
func (w *recvWindow) release(budget *hbone.Budget) {
	budget.Give(int64(w.grown))
	w.grown = 0
}

// shortest returns the shortest round trip so far; 0 while none is known.
func (c *conn) shortest() time.Duration {
	rtt, least := c.rtt.Load(), c.rttMin.Load()
	if rtt != 0 && (least == 0 || rtt < least) {
		c.rttMin.Store(rtt) // of two callers at once either is good enough
		least = rtt
	}
	return time.Duration(least)
}
