package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// callTime bounds a call: one that hangs must not cost the term.
const callTime = RenewDeadline / 2

// lock is the Lease in the API server. It bounds each call and says once what is
// wrong, and once that it is well again.
type lock struct {
	resourcelock.LeaseLock
	log   *slog.Logger
	taken atomic.Bool // by this replica, since it was last set to false

	// Whether the latest call of each kind failed. One goroutine calls at a time.
	unread, unwritten bool
}

func newLock(cfg Config) *lock {
	return &lock{log: cfg.Log, LeaseLock: resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.Name},
		Client:     cfg.Leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity},
	}}
}

// Get implements resourcelock.Interface.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	record, raw, err := l.LeaseLock.Get(ctx)
	if apierrors.IsNotFound(err) { // nobody has led yet
		l.note(ctx, &l.unread, nil)
	} else {
		l.note(ctx, &l.unread, err)
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, r, l.LeaseLock.Create)
}

// Update implements resourcelock.Interface.
func (l *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, r, l.LeaseLock.Update)
}

func (l *lock) write(ctx context.Context, r resourcelock.LeaderElectionRecord, call func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := call(ctx, r)
	if err == nil && r.HolderIdentity == l.Identity() {
		l.taken.Store(true)
	}
	l.note(ctx, &l.unwritten, err)
	return err
}

// note says when calls of a kind begin to fail and when they succeed again. That
// another replica was faster is no failure.
func (l *lock) note(ctx context.Context, failed *bool, err error) {
	before := l.unread || l.unwritten
	switch {
	case err == nil, apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		*failed = false
	case errors.Is(context.Cause(ctx), context.Canceled):
		return
	default:
		*failed = true
	}
	switch after := l.unread || l.unwritten; {
	case after && !before:
		l.log.Warn("the lease cannot be had; what only one replica does waits", "lease", l.Describe(), "err", explain(err, l.LeaseMeta.Namespace))
	case before && !after:
		l.log.Info("the lease can be had again", "lease", l.Describe())
	}
}

// explain adds what to do.
func explain(err error, namespace string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	return fmt.Errorf("%w (its account needs get, create and update on leases.coordination.k8s.io in namespace %s)", err, namespace)
}

var _ resourcelock.Interface = (*lock)(nil)
