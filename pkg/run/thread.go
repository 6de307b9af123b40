package run

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OwnThread runs f on a thread that runs nothing else meanwhile and ends when f
// returns, whatever f did to it: it may have left its namespaces, and children that
// it forked may wait for its end as a signal (prctl(2), PR_SET_PDEATHSIG). It does
// not wait for f.
//
// A locked thread ends with its goroutine, except the process's main thread, which
// the runtime can only put to sleep for good. A goroutine may find itself on that
// one, and then holds it while f takes another.
func OwnThread(f func()) { go ownThread(f) }

func ownThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	taken := make(chan struct{})
	OwnThread(func() { close(taken); f() })
	<-taken
	runtime.UnlockOSThread()
}
