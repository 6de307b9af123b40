package app

import (
	"io/fs"
	"math"
	"strconv"
	"strings"
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
