package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// launch runs a shell script as a component until the test ends.
func launch(t *testing.T, script string, ready func(context.Context, int) error) (*Unit, *runtest.Buffer) {
	t.Helper()
	log := new(runtest.Buffer)
	spawner := spawn.New()
	u := New(Spec{Name: "x", Spawner: spawner, Path: "/bin/sh", Args: []string{"-c", script}, Log: log, Drain: 10 * time.Second, Ready: ready}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	spawning, endSpawning := context.WithCancel(t.Context())
	t.Cleanup(endSpawning)
	go spawner.Run(spawning)
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if st := u.Status(); st.State != Stopped {
			t.Errorf("after Run: %+v", st)
		}
	})
	return u, log
}

func TestRestartsWhatDies(t *testing.T) {
	t.Parallel()
	u, log := launch(t, "echo started; exec sleep 1000", nil)
	if err := u.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return log.String() == "started\n" })
	first := u.Status().PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { st := u.Status(); return st.State == Ready && st.PID != first })
	if st := u.Status(); st.Restarts != 1 || st.LastExit != "signal: killed" {
		t.Errorf("status %+v", st)
	}
	eventually(t, func() bool { return log.String() == "started\nstarted\n" })
}

// TestReplace: the predecessor is told to end only when the successor is ready.
func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	allow := filepath.Join(dir, "allow")
	var mu sync.Mutex
	first := 0
	u, log := launch(t, "trap 'echo drained; exit 0' TERM; while :; do sleep 0.01; done", func(_ context.Context, pid int) error {
		mu.Lock()
		defer mu.Unlock()
		if first == 0 {
			first = pid
		}
		if _, err := os.Stat(allow); pid != first && err != nil {
			return errors.New("not yet")
		}
		return nil
	})
	if err := u.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	replaced := make(chan error, 1)
	go func() { replaced <- u.Replace(t.Context()) }()
	eventually(t, func() bool { return u.Status().PID != first })
	if log.String() != "" {
		t.Errorf("the predecessor ended before the successor was ready: %s", log)
	}
	if err := os.WriteFile(allow, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-replaced; err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return log.String() == "drained\n" && !alive(first) })
	if st := u.Status(); st.Replaced != 1 || st.Restarts != 0 || st.State != Ready {
		t.Errorf("status %+v", st)
	}
}

func TestReplaceKeepsThePredecessor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u, _ := launch(t, "[ -e "+dir+"/once ] && exit 3; touch "+dir+"/once; exec sleep 1000", func(_ context.Context, pid int) error {
		if _, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); err != nil {
			return err
		}
		if comm, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); string(comm) != "sleep\n" {
			return errors.New("not yet")
		}
		return nil
	})
	if err := u.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := u.Status().PID
	if err := u.Replace(t.Context()); err == nil {
		t.Error("a successor that exits replaced its predecessor")
	}
	if !alive(pid) || u.Status().PID != pid {
		t.Errorf("the predecessor %d is gone: %+v", pid, u.Status())
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	u, _ := launch(t, "exec sleep 1000", nil)
	if err := u.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := u.Status().PID
	if err := u.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if alive(pid) || u.Status().PID == pid {
		t.Errorf("process %d is still there", pid)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !cond(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
		time.Sleep(time.Millisecond)
	}
}
