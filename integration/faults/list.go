package faults

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
)

// Fault is something that is done to a mesh under load, and what it may cost.
type Fault struct {
	Name string
	// Do does it. It returns when the mesh is whole again.
	Do func(ctx context.Context, m *Mesh, s Size) error
	// Breaks says that streams go through what is killed: they may break.
	Breaks bool
	// Env is what every ztunnel of the mesh has in its environment.
	Env []string
}

// Size is how much of each fault is done.
type Size struct {
	Rollouts int           // of the application
	Times    int           // upgrades, kills, labels, policies
	Away     time.Duration // that the control plane is away, or a peer frozen
	Rest     time.Duration // between two times
}

// Sizes of a test run, and of make soak.
var (
	Short = Size{Rollouts: 2, Times: 1, Away: 3 * time.Second, Rest: 300 * time.Millisecond}
	Long  = Size{Rollouts: 20, Times: 5, Away: 60 * time.Second, Rest: time.Second}
)

// The programs of a mesh, by the names that culvert ps shows.
const (
	controlPlane  = "controlplane"
	clientZtunnel = "ztunnel-node-1"
	peerZtunnel   = "ztunnel-node-2"
)

// All are the faults, in the order of the table in docs/faults.md.
var All = []Fault{
	{Name: "nothing", Do: nothing},
	{Name: "rolling restarts of an application", Do: repeat(Size.rollouts, rollout)},
	{Name: "ztunnel upgrades", Do: repeat(Size.times, upgrade)},
	{Name: "ztunnel kill -9 at the peers", Do: repeat(Size.times, kill(peerZtunnel)), Breaks: true},
	{Name: "ztunnel kill -9 at the client", Do: repeat(Size.times, kill(clientZtunnel)), Breaks: true},
	{Name: "ztunnel kill -9, control plane away", Do: repeat(Size.times, without(controlPlane, kill(peerZtunnel))), Breaks: true},
	{Name: "control plane away", Do: keepDead(controlPlane)},
	{Name: "control plane frozen", Do: freeze(controlPlane)},
	{Name: "peer ztunnel frozen", Do: freeze(peerZtunnel)},
	{Name: "node agents kill -9", Do: repeat(Size.times, kill("agent-node-1", "agent-node-2"))},
	{Name: "namespace unlabelled and labelled", Do: repeat(Size.times, relabel)},
	{Name: "a DENY policy for others", Do: repeat(Size.times, denyOthers)},
	// So short a life is over half before it begins, certificates being valid from
	// a little earlier on: a new one every second.
	{Name: "certificates rotated every second", Do: nothing, Env: []string{"SECRET_TTL=60s"}},
}

func (s Size) rollouts() int { return s.Rollouts }
func (s Size) times() int    { return s.Times }

// action is one time of a fault.
type action func(ctx context.Context, m *Mesh) error

// repeat does an action so many times, with a rest before and after each.
func repeat(times func(Size) int, do action) func(context.Context, *Mesh, Size) error {
	return func(ctx context.Context, m *Mesh, s Size) error {
		for i := range times(s) {
			if !sleep(ctx, s.Rest) {
				return context.Cause(ctx)
			}
			if err := do(ctx, m); err != nil {
				return fmt.Errorf("time %d: %w", i+1, err)
			}
			if err := m.AwaitReady(ctx); err != nil {
				return fmt.Errorf("time %d: %w", i+1, err)
			}
		}
		sleep(ctx, s.Rest)
		return nil
	}
}

// nothing is the load alone.
func nothing(ctx context.Context, m *Mesh, s Size) error {
	sleep(ctx, s.Away)
	return nil
}

func rollout(ctx context.Context, m *Mesh) error { return m.Restart(ctx, "app/app") }

func upgrade(ctx context.Context, m *Mesh) error { return m.Restart(ctx, "ztunnel") }

// kill kills components with SIGKILL and waits until others are in their place.
func kill(names ...string) action {
	return func(ctx context.Context, m *Mesh) error {
		for _, name := range names {
			pid, err := m.Signal(ctx, name, syscall.SIGKILL)
			if err != nil {
				return err
			}
			if err := m.awaitOther(ctx, name, pid); err != nil {
				return err
			}
		}
		return nil
	}
}

// awaitOther waits until a component is ready again as another process.
func (m *Mesh) awaitOther(ctx context.Context, name string, pid int) error {
	return m.Await(ctx, name+" is back", func(st *laptop.Status) bool {
		for _, c := range st.Components {
			if c.Name == name {
				return c.State == supervise.Ready && c.PID != pid
			}
		}
		return false
	})
}

// keepDead kills a component again as often as it comes back, for a while.
func keepDead(name string) func(context.Context, *Mesh, Size) error {
	return func(ctx context.Context, m *Mesh, s Size) error {
		if !sleep(ctx, s.Rest) {
			return context.Cause(ctx)
		}
		away, back := context.WithTimeout(ctx, s.Away)
		defer back()
		if err := m.killAgain(away, name); err != nil {
			return err
		}
		if err := m.AwaitReady(ctx); err != nil {
			return err
		}
		sleep(ctx, s.Rest)
		return nil
	}
}

// killAgain kills a component as often as it comes back, until ctx ends.
func (m *Mesh) killAgain(ctx context.Context, name string) error {
	for ctx.Err() == nil {
		if _, err := m.Signal(ctx, name, syscall.SIGKILL); err != nil && !errors.Is(err, errNotThere) && ctx.Err() == nil {
			return err
		}
		sleep(ctx, 10*time.Millisecond)
	}
	return nil
}

// without does an action while a component is kept dead.
func without(name string, do action) action {
	return func(ctx context.Context, m *Mesh) error {
		away, back := context.WithCancel(ctx)
		defer back()
		kept := make(chan error, 1)
		go func() { kept <- m.killAgain(away, name) }()
		err := m.Await(ctx, name+" is away", func(st *laptop.Status) bool {
			for _, c := range st.Components {
				if c.Name == name {
					return c.State != supervise.Ready
				}
			}
			return false
		})
		if err == nil {
			err = do(ctx, m)
		}
		back()
		return errors.Join(err, <-kept)
	}
}

// freeze stops a component for a while without ending it.
func freeze(name string) func(context.Context, *Mesh, Size) error {
	return func(ctx context.Context, m *Mesh, s Size) error {
		if !sleep(ctx, s.Rest) {
			return context.Cause(ctx)
		}
		pid, err := m.Signal(ctx, name, syscall.SIGSTOP)
		if err != nil {
			return err
		}
		sleep(ctx, s.Away)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			return fmt.Errorf("thaw %s: %w", name, err)
		}
		if err := m.AwaitReady(ctx); err != nil {
			return err
		}
		sleep(ctx, s.Rest)
		return nil
	}
}

// relabel takes the whole namespace out of the mesh and brings it back.
func relabel(ctx context.Context, m *Mesh) error {
	for _, to := range []struct {
		yaml  string
		state laptop.MeshState
	}{{outside, laptop.MeshOut}, {inMesh, laptop.MeshIn}} {
		if err := m.Write("namespace.yaml", to.yaml); err != nil {
			return err
		}
		err := m.Await(ctx, "every pod is "+string(to.state), func(st *laptop.Status) bool {
			for _, p := range st.Pods {
				if p.Mesh != to.state {
					return false
				}
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// denial denies what the load does not do.
const denial = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: others, namespace: app}
spec:
  action: DENY
  rules:
  - from: [{source: {namespaces: [elsewhere]}}]
`

// denyOthers adds a policy that every connection is checked against, and takes it
// away again.
func denyOthers(ctx context.Context, m *Mesh) error {
	if err := m.Write("policy.yaml", denial); err != nil {
		return err
	}
	if !sleep(ctx, 500*time.Millisecond) {
		return context.Cause(ctx)
	}
	return m.Remove("policy.yaml")
}

// Run does one fault to m under load.
func (f Fault) Run(ctx context.Context, m *Mesh, s Size) (*Report, error) {
	load, err := m.Load().Start(ctx)
	if err != nil {
		return nil, err
	}
	err = f.Do(ctx, m, s)
	r := load.Stop()
	r.Event = f.Name
	if err != nil {
		return r, fmt.Errorf("%s: %w", f.Name, err)
	}
	return r, nil
}
