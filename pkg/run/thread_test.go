package run

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

type threads struct {
	asked bool // by the main thread
	used  int
}

// fromMain is seen before main, while the runtime keeps us on the main thread.
var fromMain = func() threads {
	onMain := unix.Gettid() == unix.Getpid()
	tid := make(chan int, 1)
	ownThread(func() { tid <- unix.Gettid() })
	return threads{onMain, <-tid}
}()

// TestOwnThreadIsNotTheMainOne: that one would not end.
func TestOwnThreadIsNotTheMainOne(t *testing.T) {
	if !fromMain.asked {
		t.Fatal("variables were not set on the main thread")
	}
	if fromMain.used == unix.Getpid() {
		t.Error("f ran on the main thread")
	}
}

func TestOwnThreadEnds(t *testing.T) {
	tid := make(chan int, 1)
	OwnThread(func() { tid <- unix.Gettid() })
	id := <-tid
	for {
		if err := unix.Tgkill(unix.Getpid(), id, 0); err == unix.ESRCH {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		runtime.Gosched() // a thread that stays makes the test's own time run out
	}
}
