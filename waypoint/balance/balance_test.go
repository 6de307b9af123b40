package balance

import (
	"math/rand/v2"
	"testing"
)

type set struct {
	weights []uint32
	active  []int64
}

func (s set) Len() int            { return len(s.weights) }
func (s set) Weight(i int) uint32 { return s.weights[i] }
func (s set) Active(i int) int64 {
	if s.active == nil {
		return 0
	}
	return s.active[i]
}

func TestShares(t *testing.T) {
	t.Parallel()
	for _, w := range [][]uint32{{1}, {1, 1, 1}, {3, 1}, {0, 2}, {90, 10}, {1, 0, 5, 4}, {4000000000, 1}} {
		s := set{weights: w}
		for name, p := range map[string]Picker{"random": NewRandom(s), "round robin": NewRoundRobin(s, 7), "least request": NewLeastRequest(s)} {
			rnd := rand.New(rand.NewPCG(3, 4))
			const n = 100000
			got := make([]int, len(w))
			var total float64
			for _, x := range w {
				total += float64(x)
			}
			for range n {
				got[p.Pick(rnd.Uint64())]++
			}
			for i, x := range w {
				want := float64(x) / total
				if share := float64(got[i]) / n; share < want-0.02 || share > want+0.02 || x == 0 && got[i] > 0 {
					if name == "least request" && x > 0 {
						continue // by load first, weights only through it
					}
					t.Errorf("%s %v: endpoint %d got %.3f, want %.3f", name, w, i, share, want)
				}
			}
		}
	}
}

func TestNothingToPick(t *testing.T) {
	t.Parallel()
	for _, w := range [][]uint32{nil, {0}, {0, 0}} {
		s := set{weights: w}
		for _, p := range []Picker{NewRandom(s), NewRoundRobin(s, 0), NewLeastRequest(s)} {
			if i := p.Pick(1); i != -1 {
				t.Errorf("%v %T: %d", w, p, i)
			}
		}
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	t.Parallel()
	order := turn(set{weights: []uint32{4, 2}})
	for i := 2; i < len(order); i++ {
		if order[i] == order[i-1] && order[i] == order[i-2] {
			t.Fatalf("%v", order)
		}
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	t.Parallel()
	p := NewLeastRequest(set{weights: []uint32{1, 1}, active: []int64{100, 0}})
	rnd := rand.New(rand.NewPCG(5, 6))
	busy := 0
	for range 10000 {
		if p.Pick(rnd.Uint64()) == 0 {
			busy++
		}
	}
	if busy > 3000 { // only when both draws fall on it: a quarter
		t.Errorf("the busy endpoint got %d of 10000", busy)
	}
}

func BenchmarkPick(b *testing.B) {
	w := make([]uint32, 1000)
	for i := range w {
		w[i] = uint32(i%5 + 1)
	}
	s := set{weights: w}
	for name, p := range map[string]Picker{"random": NewRandom(s), "roundrobin": NewRoundRobin(s, 0), "leastrequest": NewLeastRequest(s)} {
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				p.Pick(uint64(i) * 0x9e3779b97f4a7c15)
			}
		})
	}
}
