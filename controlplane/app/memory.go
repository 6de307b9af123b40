package app

import "runtime/debug"

// garbagePercent is how much garbage there may be for what is alive. The runtime's
// default lets memory grow to twice what is alive; a change leaves little garbage
// behind, so that half of that is collected no oftener than a few times a minute.
const garbagePercent = 50

// saveMemory sets the garbage collector, unless GOGC is set.
func saveMemory() {
	if before := debug.SetGCPercent(garbagePercent); before != 100 {
		debug.SetGCPercent(before) // somebody knows better
	}
}
