package app

import (
	"context"
	"io/fs"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

// memoryLimit returns how much memory the Go runtime may plan with, in bytes:
// nine tenths of what the control group allows, math.MaxInt64 without a limit.
func memoryLimit(cgroup fs.FS) int64 {
	for _, name := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		text, err := fs.ReadFile(cgroup, name)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && limit > 0 && limit < 1<<50 {
			return limit / 10 * 9
		}
	}
	return math.MaxInt64
}

// defaultThreads returns how many threads may run Go code at once where nobody
// says: half of a small machine, a quarter of a large one. The rest is the
// applications', and a runtime that has more threads than work spends on waking
// them what it could have moved (docs/design/2026-11-threads.md).
func defaultThreads(cpus int) int { return max(1, min(2, cpus/2), cpus/4) }

const (
	// garbage is how much may pile up before it is collected, where what is alive
	// is more than that; otherwise as much as is alive.
	garbage = 12 << 20
	// leastPercent bounds what collecting costs: at most five times what is
	// allocated is looked at.
	leastPercent = 20
	// hoard is how much unused memory is kept back from the system, and reserve how
	// much when a busy time is over.
	hoard   = 48 << 20
	reserve = 2 << 20
	// tending is how often we look.
	tending = time.Second
)

// gcPercent returns the garbage collector's setting for a heap of which so many
// bytes are alive. The runtime's default lets memory grow to twice what is alive,
// which is much where a mesh of 200,000 workloads is known and little where a
// hundred are.
func gcPercent(live uint64) int {
	if live <= garbage {
		return 100
	}
	return max(leastPercent, int(100*garbage/live))
}

// tendMemory sets the garbage collector to the size of the heap, unless GOGC is set,
// and gives memory back when a burst has left much unused, until ctx ends.
func tendMemory(ctx context.Context) error {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	if before != 100 { // GOGC is set: somebody knows better
		debug.SetGCPercent(before)
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(tending)
	defer ticker.Stop()
	m := memory{percent: 100, busy: true}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			m.look()
		}
	}
}

// memory is what was seen last.
type memory struct {
	percent int
	unused  uint64 // by the heap, and not given back
	total   uint64 // ever allocated
	busy    bool   // much was allocated in the last second
}

// look compares the heap with what it was: memory that is unused while little is
// allocated will not be needed soon, least of all when a busy time has just ended.
func (m *memory) look() {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	live, free, objects, total := s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()
	if p := gcPercent(live); p != m.percent {
		m.percent = p
		debug.SetGCPercent(p)
	}
	quiet := total-m.total < garbage/4
	m.total = total
	m.unused = free + max(objects, live) - live
	over := quiet && m.busy
	m.busy = !quiet
	if over && m.unused > reserve || quiet && m.unused > hoard {
		debug.FreeOSMemory()
	}
}
