// Package runtest checks that a package's tests leave nothing running.
//
//	func TestMain(m *testing.M) { runtest.Main(m) }
//
// Main is called once per test binary, from its main goroutine.
package runtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// settle is how long goroutines and sockets may take to end after the last test.
const settle = 5 * time.Second

// Main runs the tests and exits: with their status, or with 1 and a list when
// goroutines or sockets are left over.
func Main(m *testing.M) {
	NotAgain()
	before := sockets()
	status := m.Run()
	if status == 0 {
		if left := leftovers(before); left != "" {
			fmt.Fprintln(os.Stderr, left)
			status = 1
		}
	}
	os.Exit(status)
}

// leftovers waits for everything to end and describes what does not.
func leftovers(socketsBefore int) string {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.Now().Add(settle)
	for {
		goroutines, open := goroutines(), sockets()-socketsBefore
		if len(goroutines) == 0 && open <= 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return fmt.Sprintf("left over: %d sockets, %d goroutines\n%s", max(open, 0), len(goroutines), strings.Join(goroutines, "\n\n"))
		}
		<-poll.C
	}
}

// goroutines returns the stacks of all goroutines but the one that calls and
// those of the testing package and the runtime.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var out []string
	for i, stack := range bytes.Split(bytes.TrimSpace(buf), []byte("\n\n")) {
		text := string(stack)
		if i > 0 && !strings.Contains(text, "testing.") && !strings.Contains(text, "os/signal.") {
			out = append(out, text)
		}
	}
	return out
}

// sockets counts the process's sockets.
func sockets() int {
	entries, _ := filepath.Glob("/proc/self/fd/*")
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(e); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}
