// Package balance picks one of several endpoints. It is pure: what it needs to
// know of an endpoint it asks, and randomness comes in from outside.
//
//	Random        by weight
//	RoundRobin    by weight, in turn, smoothly: a a b a a b, not a a a a b b
//	LeastRequest  of two picked at random, the one with fewer requests per weight
package balance

import "sync/atomic"

// Set is the endpoints to pick from.
type Set interface {
	Len() int
	Weight(i int) uint32 // 0 takes no traffic
	Active(i int) int64  // requests under way
}

// Picker picks an endpoint's index, -1 when none takes traffic. It is safe for
// concurrent use.
type Picker interface {
	Pick(random uint64) int
}

// weights is the set's weights summed up, so that a number below the total
// finds its endpoint.
type weights struct {
	sums    []uint64
	uniform bool
}

func sum(s Set) weights {
	w := weights{sums: make([]uint64, s.Len()), uniform: true}
	var total uint64
	for i := range w.sums {
		total += uint64(s.Weight(i))
		w.sums[i] = total
		w.uniform = w.uniform && s.Weight(i) == s.Weight(0)
	}
	return w
}

func (w *weights) total() uint64 {
	if len(w.sums) == 0 {
		return 0
	}
	return w.sums[len(w.sums)-1]
}

// at returns the endpoint whose share contains n, below the total.
func (w *weights) at(n uint64) int {
	if w.uniform {
		return int(n / w.sums[0])
	}
	lo, hi := 0, len(w.sums)-1
	for lo < hi {
		mid := (lo + hi) / 2
		if n < w.sums[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

type random struct{ w weights }

// NewRandom picks by weight.
func NewRandom(s Set) Picker { return &random{sum(s)} }

func (r *random) Pick(rnd uint64) int {
	if r.w.total() == 0 {
		return -1
	}
	return r.w.at(rnd % r.w.total())
}

type leastRequest struct {
	set Set
	w   weights
}

// NewLeastRequest picks the less busy one of two random endpoints.
func NewLeastRequest(s Set) Picker { return &leastRequest{s, sum(s)} }

func (l *leastRequest) Pick(rnd uint64) int {
	total := l.w.total()
	if total == 0 {
		return -1
	}
	a := l.w.at((rnd & 0xffffffff) % total)
	b := l.w.at((rnd >> 32) % total)
	// One more request on either: compare (active+1)/weight without dividing.
	if uint64(l.set.Active(b)+1)*uint64(l.set.Weight(a)) < uint64(l.set.Active(a)+1)*uint64(l.set.Weight(b)) {
		return b
	}
	return a
}

type roundRobin struct {
	order []int
	next  atomic.Uint64
}

// maxTurn bounds the length of a round; weights are scaled down to it.
const maxTurn = 4096

// NewRoundRobin picks in turn. start is where the first round begins, so that
// many proxies do not begin with the same endpoint.
func NewRoundRobin(s Set, start uint64) Picker {
	r := &roundRobin{order: turn(s)}
	r.next.Store(start)
	return r
}

// turn lays out one round: at each step the endpoint that is most behind its share.
func turn(s Set) []int {
	w := make([]int64, s.Len())
	var divisor, total int64
	for i := range w {
		w[i] = int64(s.Weight(i))
		divisor = gcd(divisor, w[i])
		total += w[i]
	}
	if total == 0 {
		return nil
	}
	if steps := total / divisor; steps > maxTurn {
		divisor = total/maxTurn + 1
	}
	total = 0
	for i := range w {
		if w[i] > 0 {
			w[i] = max(w[i]/divisor, 1)
		}
		total += w[i]
	}
	return layOut(w, total)
}

func layOut(w []int64, total int64) []int {
	order := make([]int, 0, total)
	behind := make([]int64, len(w))
	for range total {
		best := 0
		for i := range w {
			behind[i] += w[i]
			if behind[i] > behind[best] {
				best = i
			}
		}
		behind[best] -= total
		order = append(order, best)
	}
	return order
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (r *roundRobin) Pick(uint64) int {
	if len(r.order) == 0 {
		return -1
	}
	return r.order[r.next.Add(1)%uint64(len(r.order))]
}
