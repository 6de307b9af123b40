package runtest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// againStatus is what a test binary exits with that a test has started.
const againStatus = 3

// NotAgain ends the process when it is a test binary that one of its own tests has
// started: it would run the tests, which would start it again, and again, until
// the machine is full. A package whose tests start their own binary as one program
// or another calls it in TestMain once it knows that it is to be none of them;
// Main does.
func NotAgain() {
	if why := again(os.Args); why != "" {
		fmt.Fprintf(os.Stderr, "this test binary was started by its own tests, and knows no program for it: %s: %q\n", why, os.Args)
		os.Exit(againStatus)
	}
}

// again says why a process is not one that `go test` has started, "" if it may be.
func again(args []string) string {
	if slices.Contains(args, "-test.fuzzworker") {
		return "" // which the testing package starts
	}
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		return "its first argument is no flag"
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return ""
	}
	for pid := os.Getppid(); pid > 0; pid = parent(pid) {
		if exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && os.SameFile(self, exe) {
			return fmt.Sprintf("process %d runs it too", pid)
		}
	}
	return ""
}

// parent returns a process's parent, 0 if there is none to be seen.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in brackets, may contain anything; the parent is the second after it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(string(fields[1]))
	return n
}
