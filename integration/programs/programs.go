// Package programs builds the programs that tests run.
//
//	integration ────────┐
//	                    ├──▶ Build, one at a time ──▶ the compiler's cache
//	integration/faults ─┘
//
// Test packages run side by side. What one of them compiles another need not
// compile again, provided that it is the same (the flags are those of `make build`)
// and that it waits for it. Their TestMain is Main.
package programs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// module is the import path of this repository.
const module = "github.com/culvert-mesh/culvert"

// Main builds the programs into a folder of its own, tells bin where that is, runs
// the tests and ends the process. environ is that of Build.
func Main(m interface{ Run() int }, bin *string, environ []string) {
	runtest.NotAgain()
	status, err := buildAndRun(m, bin, environ)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func buildAndRun(m interface{ Run() int }, bin *string, environ []string) (status int, err error) {
	if os.Getuid() != 0 {
		return 1, errors.New("these tests need root, to make network namespaces: run them with sudo")
	}
	dir, err := os.MkdirTemp("", "culvert-programs-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := Build(dir, environ); err != nil {
		return 1, err
	}
	*bin = dir
	return m.Run(), nil
}

// Build builds culvert and ztunnel into a folder, with the environment of the
// test: with the race detector if that says CULVERT_RACE=1. It waits while another
// process builds.
func Build(dir string, environ []string) error {
	unlock, err := lock(filepath.Join(os.TempDir(), "culvert-test-programs.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	for _, p := range []struct{ name, folder string }{{"culvert", "cli"}, {"ztunnel", "ztunnel"}} {
		flags, cgo := []string{"-trimpath", "-ldflags", "-s -w"}, "CGO_ENABLED=0"
		if slices.Contains(environ, "CULVERT_RACE=1") {
			flags, cgo = []string{"-race"}, "CGO_ENABLED=1"
		}
		cmd := exec.Command("go", slices.Concat([]string{"build", "-o", filepath.Join(dir, p.name)}, flags, []string{module + "/" + p.folder})...)
		cmd.Env = append(slices.Clip(environ), cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p.name, err, out)
		}
	}
	return nil
}

// lock waits for a lock among processes, which the end of its holder releases.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("flock "+path, err)
	}
	return func() { f.Close() }, nil
}
