// Package supervise is the first process of a ztunnel's container: it starts the
// proxy, starts it again in milliseconds when it dies, and holds its listening
// sockets and its knowledge meanwhile.
//
//	container runtime
//	      └── supervisor (PID 1) ── SIGTERM, SIGINT … ──▶ proxy
//	             │  pkg/handover.Store ◀── socketpair ──── Put, Save
//	             └── proxy died ──▶ Take, Load ──▶ the next proxy
//
// To the runtime the container has not ended, so it does not wait longer and
// longer before it starts it again, and what the kernel has accepted meanwhile is
// served. Under a node agent of ours the agent holds the sockets too, for the
// container that comes after this one; under another agent this store is the only
// one, and the proxy empties it when it leaves (handover.ClientConfig.Private).
//
// A proxy that ends by itself ends the container, with the same status. As process
// 1 the supervisor also takes note of the deaths of processes that others leave
// behind; so a process that supervises has no other children.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Waits before a proxy that died is started again.
const (
	minWait     = 5 * time.Millisecond
	maxWait     = 5 * time.Second
	stableAfter = 10 * time.Second // a proxy that lived so long starts the waits anew
)

// FDVariable tells the proxy, in its environment, which descriptor leads to the
// store. It is the first one after the standard ones.
const FDVariable = "HANDOVER_FD"

const storeFD = 3

// Config says what to start.
type Config struct {
	Path string
	Args []string
	Env  []string
	// Signals are passed on to the proxy.
	Signals <-chan os.Signal
	Log     *slog.Logger
}

// Exit is the error of a proxy that ended by itself.
type Exit struct{ Status int }

func (e *Exit) Error() string { return fmt.Sprintf("the proxy ended with status %d", e.Status) }

// Run keeps a proxy running until one ends by itself: nil if its status is 0, else
// an *Exit. ctx ends the proxy at once. Run takes the place of the process's main
// function: it keeps its thread, whose end the kernel would take for ours, and
// waits for all children. A program that is supervised itself, as its environment
// says, may not: it would start another, which would start another.
func Run(ctx context.Context, cfg Config) error {
	if slices.ContainsFunc(cfg.Env, func(v string) bool { return strings.HasPrefix(v, FDVariable+"=") }) {
		return errNested
	}
	runtime.LockOSThread()
	store := handover.NewStore(handover.StoreConfig{Log: cfg.Log})
	defer store.Clear()
	back := run.NewBackoff(minWait, maxWait)
	for {
		began := time.Now()
		crashed, err := runOnce(ctx, cfg, store)
		if !crashed {
			return err
		}
		if time.Since(began) > stableAfter {
			back.Reset()
		}
		wait := back.Next()
		cfg.Log.Error("the proxy died, starting it again", "error", err, "after", wait)
		if stopped(ctx, cfg.Signals, wait) {
			return err
		}
	}
}

var errNested = errors.New("the environment has " + FDVariable + ": a program that is supervised supervises nobody")

// stopped waits before the next start, unless the container is to end: then there
// is nobody to pass the signal on to.
func stopped(ctx context.Context, signals <-chan os.Signal, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return false
		case <-ctx.Done():
			return true
		case s := <-signals:
			if ends(s) {
				return true
			}
		}
	}
}

func ends(s os.Signal) bool {
	return s == syscall.SIGTERM || s == syscall.SIGINT || s == syscall.SIGQUIT
}

// runOnce runs one proxy to its end, and reports whether it died without wanting to.
func runOnce(ctx context.Context, cfg Config, store *handover.Store) (crashed bool, err error) {
	ours, theirs, err := handover.Pair()
	if err != nil {
		return false, err
	}
	proxy, err := os.StartProcess(cfg.Path, append([]string{cfg.Path}, cfg.Args...), &os.ProcAttr{
		Env:   with(cfg.Env, FDVariable, strconv.Itoa(storeFD)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	theirs.Close()
	if err != nil {
		ours.Close()
		return false, fmt.Errorf("start the proxy: %w", err)
	}
	var parts sync.WaitGroup
	serving, end := context.WithCancel(ctx)
	parts.Go(func() { store.Serve(serving, ours) })
	told := false // to end; written before the parts end
	parts.Go(func() { told = passOn(serving, proxy, cfg.Signals) })
	stop := context.AfterFunc(ctx, func() { _ = proxy.Kill() })
	status, err := await(proxy.Pid)
	stop()
	end()
	parts.Wait()
	if err != nil {
		return false, err
	}
	crashed, err = judge(ctx, status)
	return crashed && !told, err
}

// with returns an environment in which a variable is set, once: of two the first
// would count.
func with(env []string, name, value string) []string {
	rest := slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
	return append(rest, name+"="+value)
}

// await returns how a process ended. Any other that ends meanwhile was left to us
// by its parent, and nobody else asks how it ended.
func await(pid int) (status unix.WaitStatus, err error) {
	for {
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case got == pid:
			return status, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, os.NewSyscallError("wait4", err)
		}
	}
}

// judge says whether a proxy's end is a crash. One that was killed, or that
// panicked, is started again. One that says itself that it cannot go on, as with a
// configuration that makes no sense, would say so again.
func judge(ctx context.Context, status unix.WaitStatus) (crashed bool, err error) {
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case status.Signaled():
		return true, fmt.Errorf("signal: %s", status.Signal())
	case status.ExitStatus() == 0:
		return false, nil
	}
	err = &Exit{status.ExitStatus()}
	return status.ExitStatus() == panicStatus, err
}

// panicStatus is what the Go runtime exits with after a panic or a fatal error.
const panicStatus = 2

// passOn sends the proxy what we are sent until ctx ends, and reports whether that
// told it to end.
func passOn(ctx context.Context, p *os.Process, signals <-chan os.Signal) (told bool) {
	for {
		select {
		case s := <-signals:
			_ = p.Signal(s)
			told = told || ends(s)
		case <-ctx.Done():
			return told
		}
	}
}
