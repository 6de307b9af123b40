// Package supervise keeps the processes of a mesh's components running: started
// inside their node's network namespace, started again when they die, replaced
// without a gap when asked to, and gone when the supervisor is.
//
//	start ─▶ starting ─▶ ready ─▶ (exit) ─▶ waiting ─▶ start …
//	                       │
//	                       └ Replace: the successor starts and becomes ready,
//	                         then the predecessor is told to drain and exit
//
// A Unit is one component. Its Run owns the processes; all other methods may be
// called from any goroutine while it runs.
package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Waits of a Unit.
const (
	minBackoff  = 100 * time.Millisecond // before the first restart
	maxBackoff  = 5 * time.Second
	stableAfter = 10 * time.Second // a process that ran so long starts the back-off anew
	askPeriod   = 20 * time.Millisecond
	readyPeriod = time.Second
)

// Spec is what a component's process is.
type Spec struct {
	Name    string
	Path    string
	Args    []string
	Env     []string
	NS      *netns.NS     // nil = the supervisor's own
	Log     io.Writer     // standard output and error
	Drain   time.Duration // how long a process may take to end when it is told to
	Restart time.Duration // before the first restart; 0 = 100 ms
	Spawner *spawn.Spawner
	// Ready asks whether the process with that number does its work. nil = as
	// soon as it has started.
	Ready func(ctx context.Context, pid int) error
}

// State says where a component is.
type State string

// States of a component.
const (
	Starting State = "starting"
	Ready    State = "ready"
	Waiting  State = "waiting" // died, about to be started again
	Stopped  State = "stopped"
)

// Status is a component at one moment.
type Status struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"`
	Replaced int       `json:"replaced"`
	Since    time.Time `json:"since"`
	LastExit string    `json:"last_exit,omitempty"`
	Detail   string    `json:"detail,omitempty"` // why it is not ready
}

// Unit supervises one component.
type Unit struct {
	spec    Spec
	changed func(Status) // nil = nobody listens
	orders  chan order

	leaving sync.WaitGroup // predecessors that drain

	mu     sync.Mutex
	status Status
	ready  chan struct{} // closed when the current process is ready; replaced when it is not
}

type order struct {
	gap  bool // stop first, then start
	done chan error
}

// New returns a Unit; nothing runs before Run. changed is called with every
// change of status, by one goroutine at a time, and must not block.
func New(s Spec, changed func(Status)) *Unit {
	return &Unit{spec: s, changed: changed, orders: make(chan order),
		status: Status{Name: s.Name, State: Stopped, Since: time.Now()}, ready: make(chan struct{})}
}

// Status returns what the component is doing now.
func (u *Unit) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

// WaitReady waits until the component is ready.
func (u *Unit) WaitReady(ctx context.Context) error {
	u.mu.Lock()
	ready := u.ready
	u.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		st := u.Status()
		return fmt.Errorf("wait for %s: %w (%s %s %s)", u.spec.Name, context.Cause(ctx), st.State, st.Detail, st.LastExit)
	}
}

// Replace starts a successor, waits until it is ready and lets the predecessor
// drain. The component is available all the while. A successor that does not
// become ready is killed, and the predecessor stays.
func (u *Unit) Replace(ctx context.Context) error {
	return u.order(ctx, order{done: make(chan error, 1)})
}

// Restart stops the process and starts it again.
func (u *Unit) Restart(ctx context.Context) error {
	return u.order(ctx, order{gap: true, done: make(chan error, 1)})
}

func (u *Unit) order(ctx context.Context, o order) error {
	select {
	case u.orders <- o:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Run keeps the component running until ctx ends, and then kills it.
func (u *Unit) Run(ctx context.Context) error {
	back := run.NewBackoff(cmp.Or(u.spec.Restart, minBackoff), maxBackoff)
	defer u.leaving.Wait()
	defer u.set(func(s *Status) { s.State, s.PID = Stopped, 0 })
	for ctx.Err() == nil {
		p, err := u.start()
		if err == nil {
			p, err = u.attend(ctx, p)
		}
		if ctx.Err() != nil {
			return nil
		}
		if p != nil && time.Since(p.began) > stableAfter {
			back.Reset()
		}
		u.set(func(s *Status) { s.State, s.PID, s.LastExit, s.Restarts = Waiting, 0, fmt.Sprint(err), s.Restarts+1 })
		if run.Sleep(ctx, back.Next()) != nil {
			return nil
		}
	}
	return nil
}

// process is one execution of the component.
type process struct {
	cmd   *exec.Cmd
	began time.Time
	done  chan struct{}
	err   error // valid after done

	missed int // answers in a row that did not come; of attend
}

func (u *Unit) start() (*process, error) {
	cmd := exec.Command(u.spec.Path, u.spec.Args...)
	cmd.Env = u.spec.Env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = u.spec.Log, u.spec.Log
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &process{cmd: cmd, began: time.Now(), done: make(chan struct{})}
	if err := u.spec.Spawner.Start(u.spec.NS, cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", u.spec.Name, err)
	}
	u.set(func(s *Status) { s.State, s.PID, s.Detail = Starting, cmd.Process.Pid, "" })
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	defer close(p.done)
	if err := p.cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		p.err = err
		return
	}
	p.err = errors.New("exit status 0")
}

// kill ends the process and everything that it started.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// stop asks the process to end, and kills it when it has not after drain or when
// ctx ends.
func (p *process) stop(ctx context.Context, drain time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	late := time.NewTimer(drain)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
	case <-ctx.Done():
	}
	p.kill()
}

// attend watches a process until it dies, and carries out orders meanwhile. It
// returns the process that died last and how; the process of an ended ctx is killed.
func (u *Unit) attend(ctx context.Context, p *process) (*process, error) {
	ask := time.NewTimer(0)
	defer ask.Stop()
	for {
		select {
		case <-ctx.Done():
			p.kill()
			return p, context.Cause(ctx)
		case <-p.done:
			p.kill() // what it left behind
			return p, p.err
		case <-ask.C:
			ask.Reset(u.check(ctx, p))
		case o := <-u.orders:
			next, err := u.carryOut(ctx, o, p)
			o.done <- err
			if next == nil {
				return p, err
			}
			p = next
			ask.Reset(0)
		}
	}
}

// check asks whether the process is ready, and returns when to ask again.
func (u *Unit) check(ctx context.Context, p *process) time.Duration {
	err := u.ask(ctx, p)
	if err == nil {
		p.missed = 0
		u.set(func(s *Status) { s.State, s.Detail = Ready, "" })
		return readyPeriod
	}
	// On a busy machine an answer may be late; one that was ready is given time.
	if p.missed++; u.Status().State == Ready && p.missed < patience {
		return readyPeriod
	}
	u.set(func(s *Status) { s.State, s.Detail = Starting, err.Error() })
	return askPeriod
}

// patience is how many answers in a row a ready process may owe.
const patience = 3

func (u *Unit) ask(ctx context.Context, p *process) error {
	if u.spec.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyPeriod)
	defer cancel()
	return u.spec.Ready(ctx, p.cmd.Process.Pid)
}

// carryOut returns the process that is in charge afterwards, nil for none.
func (u *Unit) carryOut(ctx context.Context, o order, old *process) (*process, error) {
	if o.gap {
		old.stop(ctx, u.spec.Drain)
		return u.start()
	}
	next, err := u.start()
	if err != nil {
		return old, err
	}
	if err := u.await(ctx, next); err != nil {
		next.kill()
		u.set(func(s *Status) { s.PID = old.cmd.Process.Pid })
		return old, fmt.Errorf("replace %s: the successor did not become ready: %w", u.spec.Name, err)
	}
	u.set(func(s *Status) { s.State, s.Replaced = Ready, s.Replaced+1 })
	u.leaving.Go(func() { old.stop(ctx, u.spec.Drain) })
	return next, nil
}

// successorTimeout is how long a successor may take to become ready.
const successorTimeout = 20 * time.Second

func (u *Unit) await(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, successorTimeout)
	defer cancel()
	for {
		err := u.ask(ctx, p)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.err
		case <-ctx.Done():
			return err
		case <-time.After(askPeriod):
		}
	}
}

// set changes the status and tells who listens.
func (u *Unit) set(change func(*Status)) {
	u.mu.Lock()
	before := u.status
	change(&u.status)
	now := u.status
	if now.State != before.State {
		u.status.Since = time.Now()
		now = u.status
	}
	switch {
	case now.State == Ready && before.State != Ready:
		close(u.ready)
	case now.State != Ready && before.State == Ready:
		u.ready = make(chan struct{})
	}
	u.mu.Unlock()
	if u.changed != nil && now != before {
		u.changed(now)
	}
}
