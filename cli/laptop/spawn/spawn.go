// Package spawn starts processes that must not outlive their starter, inside
// network namespaces.
//
// The kernel can kill a child when its parent ends, but what it calls the parent
// is the thread that forked (prctl(2), PR_SET_PDEATHSIG). Go ends a thread when a
// goroutine that is locked to it ends, and any thread may have forked before. So
// one thread does all the forking here, and nothing else, for as long as the
// Spawner runs.
//
// Start may be called from any goroutine while Run runs, and waits until it does.
package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Spawner starts processes.
type Spawner struct {
	orders chan order
	ended  chan struct{}
}

type order struct {
	ns   *netns.NS
	cmd  *exec.Cmd
	done chan error
}

// ErrEnded says that the Spawner no longer runs.
var ErrEnded = errors.New("processes are no longer started")

// New returns a Spawner.
func New() *Spawner { return &Spawner{orders: make(chan order), ended: make(chan struct{})} }

// Run starts processes until ctx ends. Those that still run then are killed.
func (s *Spawner) Run(ctx context.Context) error {
	done := make(chan error, 1)
	run.OwnThread(func() { s.work(ctx, done) })
	return <-done
}

// work is the thread, which ends with it.
func (s *Spawner) work(ctx context.Context, done chan<- error) {
	defer close(s.ended)
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		done <- fmt.Errorf("open own network namespace: %w", err)
		return
	}
	defer unix.Close(home)
	for {
		select {
		case <-ctx.Done():
			done <- nil
			return
		case o := <-s.orders:
			if err := o.carryOut(home); err != nil {
				done <- err
				return
			}
		}
	}
}

// carryOut starts one process. Its error is that the thread cannot come home.
func (o order) carryOut(home int) error {
	if o.ns == nil {
		o.done <- o.cmd.Start()
		return nil
	}
	if err := unix.Setns(o.ns.FD(), unix.CLONE_NEWNET); err != nil {
		o.done <- os.NewSyscallError("setns", err)
		return nil
	}
	err := o.cmd.Start()
	back := unix.Setns(home, unix.CLONE_NEWNET)
	o.done <- err
	return os.NewSyscallError("setns", back)
}

// Start starts cmd inside the namespace (nil = the process's own), to be killed
// when the Spawner ends.
func (s *Spawner) Start(ns *netns.NS, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	o := order{ns, cmd, make(chan error, 1)}
	select {
	case s.orders <- o:
		return <-o.done
	case <-s.ended:
		return ErrEnded
	}
}
