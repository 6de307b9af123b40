// Package lease lets one of a program's replicas lead: do what must be done once.
//
//	        ┌──────────────────────────── lost: lead's context ends at once ──┐
//	        ▼                                                                 │
//	follow ─── the Lease is free, or not renewed for 15 s ──▶ lead ───────────┤
//	                                                           │ renewed every 2 s
//	        ctx ends: lead's context ends ─▶ lead returns ─▶ the Lease is given back
//
// Those who follow watch the Lease: one that is given back, or deleted, is another
// replica's at once. It is given back only after lead has returned, and a leader that cannot renew is told before
// anybody else may lead, so two replicas never lead at once as long as their clocks
// run at about the same speed; what their clocks show does not matter.
//
// Run is called once at a time; everything else is safe for concurrent use.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// Times of the election. They are those of Kubernetes' own components.
const (
	Duration      = 15 * time.Second // a Lease that nobody has renewed for so long is free
	RenewDeadline = 10 * time.Second // a leader that could not renew for so long leads no more
	RetryPeriod   = 2 * time.Second  // between attempts, to renew or to take
)

// Waits between attempts at leading that failed by themselves.
const (
	minPause = time.Second
	maxPause = time.Minute
)

// Config configures a Lease.
type Config struct {
	Leases    coordination.LeasesGetter
	Namespace string // of the Lease
	Name      string // of the Lease
	Identity  string // of this replica, unlike every other's
	Log       *slog.Logger
	Metrics   prometheus.Registerer // nil = none
}

// Lease is one replica's part in an election.
type Lease struct {
	cfg     Config
	lock    *lock
	leading atomic.Bool
	terms   prometheus.Counter
	told    string // the version that released has told of last
}

// New returns a Lease that asks nothing before Run.
func New(cfg Config) *Lease {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lease{cfg: cfg}
	l.lock = newLock(cfg)
	l.observe(cfg.Metrics)
	return l
}

func (l *Lease) observe(reg prometheus.Registerer) {
	l.terms = prometheus.NewCounter(prometheus.CounterOpts{Name: "culvert_controlplane_leader_terms_total",
		Help: "Times that this replica began to lead."})
	if reg == nil {
		return
	}
	reg.MustRegister(l.terms, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "culvert_controlplane_leader",
		Help: "1 while this replica leads, else 0."}, func() float64 {
		if l.Leading() {
			return 1
		}
		return 0
	}))
}

// Leading reports whether this replica leads.
func (l *Lease) Leading() bool { return l.leading.Load() }

// Run calls lead whenever this replica holds the Lease, until ctx ends. lead's
// context ends when the Lease is lost, and lead must then return soon. When lead
// fails by itself, or panics, that is logged, the Lease is given back for another
// replica to try, and so does this one after a pause. When it returns nil there is
// nothing more to do and the replica leads on without it.
func (l *Lease) Run(ctx context.Context, lead func(ctx context.Context) error) error {
	pause := run.NewBackoff(minPause, maxPause)
	for ctx.Err() == nil {
		err := l.term(ctx, lead)
		if err == nil || ctx.Err() != nil {
			pause.Reset()
			continue
		}
		wait := pause.Next()
		l.cfg.Log.Error("leading failed; another replica may try", "err", err, "retry", wait)
		run.Sleep(ctx, wait)
	}
	return nil
}

// Phases of a term.
const (
	following int32 = iota
	leading
	over // before it led
)

// errLost is why lead's context ends when it is not the caller's that does.
var errLost = errors.New("the Lease is lost")

// term waits until this replica leads and returns when it does no more, or when the
// Lease has become free, to be tried anew. The error is lead's own.
func (l *Lease) term(ctx context.Context, lead func(ctx context.Context) error) error {
	var phase atomic.Int32
	result := make(chan error, 1)
	holding, stop := context.WithCancel(context.WithoutCancel(ctx)) // while it lives the Lease is sought, then renewed
	defer stop()
	endFollowing := func() {
		if phase.CompareAndSwap(following, over) { // else lead ends first
			stop()
		}
	}
	defer context.AfterFunc(ctx, endFollowing)()
	watched, unwatch := context.WithCancel(holding)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer unwatch()
	watching.Go(func() {
		if l.released(watched) {
			endFollowing() // the next term begins with an attempt
		}
	})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l.lock, Name: l.cfg.Name, LeaseDuration: Duration, RenewDeadline: RenewDeadline, RetryPeriod: RetryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				defer stop()
				unwatch()
				if phase.CompareAndSwap(following, leading) {
					result <- l.lead(ctx, held, lead)
				} else {
					result <- nil
				}
			},
			OnStoppedLeading: func() {},
			OnNewLeader:      l.leader,
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", l.cfg.Namespace, l.cfg.Name, err)
	}
	l.lock.taken.Store(false)
	elector.Run(klog.NewContext(holding, logr.Discard())) // what there is to say the lock says
	if !l.lock.taken.Load() {
		return nil
	}
	err = <-result
	if elector.IsLeader() {
		l.giveBack()
	}
	return err
}

// lead calls lead until it has returned and either held or ctx ends. What lead
// returns after its context ended is its way of ending.
func (l *Lease) lead(ctx, held context.Context, lead func(ctx context.Context) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(held, func() { cancel(errLost) })()
	l.leading.Store(true)
	l.terms.Inc()
	l.cfg.Log.Info("leading", "lease", l.cfg.Namespace+"/"+l.cfg.Name, "identity", l.cfg.Identity)
	err := safely(inner, lead)
	if err != nil && inner.Err() == nil {
		l.leading.Store(false)
		return err
	}
	<-inner.Done()
	l.leading.Store(false)
	l.cfg.Log.Info("leading no more", "reason", context.Cause(inner))
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errLost) {
		l.cfg.Log.Warn("leading ended badly", "err", err)
	}
	return nil
}

// safely calls lead; a panic is an error.
func safely(ctx context.Context, lead func(ctx context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return lead(ctx)
}

// leader notes who leads.
func (l *Lease) leader(identity string) {
	if identity != l.cfg.Identity && identity != "" {
		l.cfg.Log.Info("another replica leads", "identity", identity)
	}
}

// giveBack lets another replica lead at once. Without it that takes Duration.
func (l *Lease) giveBack() {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	record, _, err := l.lock.Get(ctx)
	if err != nil || record.HolderIdentity != l.cfg.Identity {
		return // the lock has said what is wrong
	}
	now := metav1.Now()
	l.lock.Update(ctx, resourcelock.LeaderElectionRecord{
		LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now,
	})
}
