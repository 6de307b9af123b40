package app

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/logging"
)

// Handover says where sockets and state are left for a successor, and how long the
// connections of a ztunnel that has one may go on.
type Handover struct {
	Socket  string        // the node agent's store; "" = none
	FD      int           // connection to our supervisor's store; 0 = none
	Overlap time.Duration // open connections may go on for so long beside a successor
}

// defaultOverlap is long, for a connection that is cut is an error to its user,
// and not endless: in the end the old program must go.
const defaultOverlap = time.Hour

func (c *Config) readHandover(e *environ.Env) {
	if c.ZDSSocket != "" {
		c.Handover.Socket = handover.PathOf(c.ZDSSocket)
	}
	if path, set := e.Lookup("HANDOVER_UDS"); set {
		c.Handover.Socket = path
	}
	c.Handover.FD = int(e.Integer("HANDOVER_FD", 0, 3, 1<<20))
	c.Handover.Overlap = e.Duration("CONNECTION_TERMINATION_DEADLINE", e.DrainTime(defaultOverlap))
}

// buildStores lays out the connections to stores. Whoever attaches to a new one
// gives it everything.
func (a *App) buildStores() error {
	c := a.cfg.Handover
	log := logging.Scope(a.log, "handover")
	attached := func() {
		a.pods.Deposit()
		a.saver.poke("")
	}
	superseded := func(now bool) {
		if now {
			log.Info("a successor serves")
		}
		a.status.poke()
	}
	if c.Socket != "" {
		a.stores = append(a.stores, handover.NewClient(handover.ClientConfig{
			Path: c.Socket, Log: log, Attached: attached, Superseded: superseded}))
	}
	if c.FD == 0 {
		return nil
	}
	conn, err := handover.Inherited(os.NewFile(uintptr(c.FD), "supervisor"))
	if err != nil {
		return fmt.Errorf("HANDOVER_FD: %w", err)
	}
	a.stores = append(a.stores, handover.NewClient(handover.ClientConfig{Conn: conn, Private: true, Log: log}))
	return nil
}

// attach connects to the stores that are there, and takes over what they have.
func (a *App) attach() {
	for _, s := range a.stores {
		if err := s.Attach(); err != nil {
			a.log.Debug("store of sockets not reached", "error", err)
		}
	}
	a.restore()
}

// status wakes report when there may be something new.
type status struct{ wake chan struct{} }

func (s *status) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// reportPeriod is how often a ztunnel says how it is, if that has changed.
const reportPeriod = time.Second

// report tells the stores how this ztunnel is until ctx ends.
func (a *App) report(ctx context.Context) error {
	tick := time.NewTicker(reportPeriod)
	defer tick.Stop()
	var told handover.Status
	for {
		now := a.Status()
		if differs(told, now) {
			a.stores.Report(now)
			told = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.status.wake:
		}
	}
}

// differs reports whether people should see now instead of was.
func differs(was, now handover.Status) bool {
	if now.State == handover.Serving {
		was.Open, now.Open = 0, 0
	}
	return was != now
}

// Status returns how this ztunnel is.
func (a *App) Status() handover.Status {
	s := handover.Status{State: a.state(), Open: a.pods.Open()}
	if a.xds != nil {
		if s.Away = a.xds.Away() > 0; s.Away {
			s.Contact = a.heard()
		}
		s.Restored = a.restored.Load() != nil && !isClosed(a.xds.FirstSnapshot())
	}
	if until := a.until.Load(); until != nil {
		s.Until = *until
	}
	return s
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (a *App) state() handover.State {
	if s := a.leaving.Load(); s != nil {
		return *s
	}
	if a.allUp.Load() {
		return handover.Serving
	}
	return handover.Starting
}

// setLeaving says from when on this ztunnel leaves, and until when.
func (a *App) setLeaving(s handover.State, until time.Time) {
	a.leaving.Store(&s)
	a.until.Store(&until)
	a.status.poke()
}

// leavePoll is how often a ztunnel that leaves looks whether it may.
const leavePoll = 20 * time.Millisecond

// leave lets go of the pods after serving has ended, and returns when the last
// connection has. Where a successor takes over the sockets, new connections are
// its own from now on. Until there is one we go on accepting, for nobody else
// does: what arrives after we have left waits for it in the sockets' queues.
func (a *App) leave(ctx context.Context) {
	start := time.Now()
	alone, beside := start.Add(a.cfg.DrainTime), start.Add(a.cfg.Handover.Overlap)
	superseded := a.stores.Superseded()
	if a.stores.Lasting() && !superseded {
		a.log.Info("leaving, no successor yet", "deadline", a.cfg.DrainTime)
		a.setLeaving(handover.Leaving, alone)
		superseded = a.awaitSuccessor(ctx, alone)
	}
	until := alone
	if superseded {
		until = beside
	}
	a.setLeaving(handover.Draining, until)
	if a.zds != nil {
		a.zds.Retire()
	}
	a.yieldPorts()
	a.log.Info("draining", "open", a.pods.Open(), "successor", superseded, "deadline", time.Until(until).Round(time.Second))
	deadline, done := context.WithDeadline(ctx, until)
	defer done()
	a.pods.Drain(deadline)
}

// awaitSuccessor returns when a successor serves, no connection is open, or the
// time is over, and reports whether one serves. An agent that is away comes back.
func (a *App) awaitSuccessor(ctx context.Context, until time.Time) bool {
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for time.Now().Before(until) && a.pods.Open() > 0 && !a.stores.Superseded() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return a.stores.Superseded()
		}
	}
	return a.stores.Superseded()
}

// yieldPorts closes the ports for people and for Kubernetes when a successor has
// them too, in one network namespace: the kernel would give us half of what is
// meant for it. In a namespace of our own they show how the draining goes.
func (a *App) yieldPorts() {
	n, err := listenersOn(a.cfg.ReadyPort)
	if err != nil {
		a.log.Warn("listening sockets not counted", "error", err)
	}
	if n > 1 {
		a.yield()
	}
}

// untilYield ends a server when its port is left to a successor.
func (a *App) untilYield(serve func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(a.yielded, cancel)()
		return serve(ctx)
	}
}

// listenersOn counts the sockets that listen on a port of our network namespace
// (/proc/net/tcp: the second column is the local address, 0A in the fourth LISTEN).
func listenersOn(port uint16) (n int, err error) {
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if os.IsNotExist(err) {
			continue // a kernel without IPv6
		} else if err != nil {
			return n, err
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) < 4 || fields[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(p) == port {
				n++
			}
		}
		f.Close()
	}
	return n, nil
}

// dumpHandover is what /config_dump says about restarts.
func (a *App) dumpHandover() any {
	d := map[string]any{"status": a.Status(), "attached": a.stores.Attached(), "superseded": a.stores.Superseded()}
	if r := a.restored.Load(); r != nil {
		d["restored"] = map[string]any{"lastContact": r.Contact, "workloadsAndServices": r.Known, "policies": r.Policies, "took": r.Took.String()}
	}
	return d
}

// staleness is what the readiness port adds while the control plane is away.
func (a *App) staleness() string {
	if a.xds == nil || a.xds.Away() < time.Second {
		return ""
	}
	heard := a.heard()
	if heard.IsZero() {
		return ""
	}
	return fmt.Sprintf("the control plane is away: what is known is %s old", time.Since(heard).Round(time.Second))
}
