package workloads

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

// item is found under hashes that collide in every way: same shard, same slot,
// same tag.
type item struct{ hash uint64 }

func collidingHash(r *rand.Rand) uint64 {
	return uint64(r.IntN(2))<<(64-shardBits) | uint64(r.IntN(4))<<16 | uint64(r.IntN(8))
}

// TestTableAgainstModel edits a table whose values all share two shards, and
// compares every chain, before and after each commit.
func TestTableAgainstModel(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	var table table[item]
	model := make(map[uint64][]*item)
	for step := range 800 {
		e := edit[item]{t: &table}
		frozen := len(chain(table.find(0)))
		for range r.IntN(8) {
			h := collidingHash(r)
			if list := model[h]; len(list) > 0 && (len(list) > 4 || r.IntN(100) < 40+step/25) {
				i := r.IntN(len(list))
				e.remove(h, list[i])
				model[h] = slices.Delete(slices.Clone(list), i, i+1)
				continue
			}
			v := &item{h}
			e.insert(h, v)
			model[h] = append(slices.Clone(model[h]), v)
		}
		if len(chain(table.find(0))) != frozen {
			t.Fatalf("step %d: an edit showed before its commit", step)
		}
		for h, want := range model {
			if got := chain(e.find(h)); !sameItems(got, want) {
				t.Fatalf("step %d: edit holds %v under %x, want %v", step, got, h, want)
			}
		}
		e.commit()
		total := 0
		table.each(func(*item) { total++ })
		for h, want := range model {
			if got := chain(table.find(h)); !sameItems(got, want) {
				t.Fatalf("step %d: table holds %v under %x, want %v", step, got, h, want)
			}
			total -= len(want)
		}
		if total != 0 {
			t.Fatalf("step %d: table holds %d more values than the model", step, total)
		}
	}
}

func chain(c cursor[item]) (out []*item) {
	for v := c.next(); v != nil; v = c.next() {
		out = append(out, v)
	}
	return out
}

func sameItems(a, b []*item) bool {
	if len(a) != len(b) {
		return false
	}
	for _, v := range a {
		if !slices.Contains(b, v) {
			return false
		}
	}
	return true
}

func TestTableShrinks(t *testing.T) {
	t.Parallel()
	var table table[item]
	var all []*item
	e := edit[item]{t: &table}
	for i := range 1000 {
		v := &item{uint64(i)}
		all = append(all, v)
		e.insert(v.hash, v)
	}
	e.commit()
	for _, v := range all[1:] {
		e := edit[item]{t: &table}
		e.remove(v.hash, v)
		e.commit()
	}
	if s := table.shards[0].Load(); s.n != 1 || len(s.vals) > 16 {
		t.Errorf("one value left in %d slots", len(s.vals))
	}
	e = edit[item]{t: &table}
	e.remove(0, all[0])
	e.commit()
	if table.shards[0].Load() != nil {
		t.Error("an empty shard is kept")
	}
}

// TestMemory bounds what a workload costs. It is not parallel, so that the heap is
// its own.
func TestMemory(t *testing.T) {
	const n, limit = 10_000, 900
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := New()
	fill(s, n)
	each := (heap() - before) / n
	t.Logf("%d bytes per workload, its share of services and indexes included", each)
	if each > limit {
		t.Errorf("a workload costs %d bytes, want at most %d", each, limit)
	}
	runtime.KeepAlive(s)
}
