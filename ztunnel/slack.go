package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// slack is how much later than asked for the kernel may wake us, in nanoseconds.
// Where one thread runs Go code, the runtime's monitor otherwise looks after it every
// 70 µs while it is busy, which is a tenth of what a new connection costs. Timers
// of a proxy are milliseconds.
const slack = 1_000_000

// slackVariable tells the program that it has been started again already, whatever
// the kernel made of it.
const slackVariable = "CULVERT_ZTUNNEL_SLACKENED"

// slacken starts the program again, in its place, with this timer slack: a thread
// has the slack of the one that made it, and the monitor's was made before main. It
// returns where it is set already, or where nothing would be gained: with more
// processors the runtime itself counts on short naps. A failure costs nothing else.
func slacken() {
	if _, again := os.LookupEnv(slackVariable); again || runtime.NumCPU() >= 4 {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // exec(2) keeps what its thread has
	defer runtime.UnlockOSThread()
	now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || now >= slack || unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(self, os.Args, append(os.Environ(), slackVariable+"=1"))
}
