package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// ExecSpec is a command to run inside a running pod.
type ExecSpec struct {
	PID            int // of the pod's process 1
	Command        []string
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a command inside all of a pod's namespaces, passes signals on to it
// and returns its exit status. A status of 127 with an error means that it could
// not be started. When ctx ends the command is killed.
func Exec(ctx context.Context, s ExecSpec) (status int, err error) {
	type result struct {
		status int
		err    error
	}
	done := make(chan result, 1)
	run.OwnThread(func() { // it leaves its namespaces for good
		status, err := s.run(ctx)
		done <- result{status, err}
	})
	r := <-done
	return r.status, r.err
}

func (s ExecSpec) run(ctx context.Context) (int, error) {
	if err := enterAll(s.PID); err != nil {
		return 127, fmt.Errorf("enter the pod's namespaces: %w", err)
	}
	path, err := lookPath(s.Command[0], s.Env)
	if err != nil {
		return 127, err
	}
	cmd := exec.CommandContext(ctx, path, s.Command[1:]...)
	cmd.Args[0] = s.Command[0]
	cmd.Env, cmd.Dir = s.Env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGWINCH)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	over := make(chan struct{})
	go relaySignals(cmd.Process, signals, over)
	err = cmd.Wait()
	close(over)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 127, err
	}
	return exitCode(cmd.ProcessState), nil
}

func relaySignals(p *os.Process, signals <-chan os.Signal, over <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = p.Signal(s)
		case <-over:
			return
		}
	}
}

// exitCode is what a shell would say: 128 and the number of a deadly signal.
func exitCode(st *os.ProcessState) int {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// enterAll moves the calling thread into the namespaces of process pid. The
// descriptors are opened first: inside, /proc is another.
func enterAll(pid int) error {
	kinds := []struct {
		name string
		flag int
	}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}
	fds := make([]int, 0, len(kinds))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, k := range kinds {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, k.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for i, k := range kinds {
		if err := unix.Setns(fds[i], k.flag); err != nil {
			return os.NewSyscallError("setns "+k.name, err)
		}
	}
	return nil
}
