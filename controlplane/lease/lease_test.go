package lease

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// handover is the longest that a Lease which nobody has lies there when it cannot be
// watched.
const handover = RetryPeriod * 23 / 10

// api is an API server that may be away.
type api struct {
	*fake.Clientset
	err   atomic.Pointer[error]
	other atomic.Pointer[coordinationv1.Lease] // what somebody else writes just before the next update
}

func newAPI() *api {
	a := &api{Clientset: fake.NewSimpleClientset()}
	a.PrependReactor("*", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if err := a.err.Load(); err != nil {
			return true, nil, *err
		}
		if action.GetVerb() != "update" {
			return false, nil, nil
		}
		if l := a.other.Swap(nil); l != nil {
			err := a.Tracker().Update(coordinationv1.SchemeGroupVersion.WithResource("leases"), l, "mesh")
			return true, nil, apierrors.NewConflict(coordinationv1.Resource("leases"), "plane", cmp.Or(err, errors.New("changed")))
		}
		return false, nil, nil
	})
	return a
}

func (a *api) fail(err error) { a.err.Store(&err) }
func (a *api) work()          { a.err.Store(nil) }

func (a *api) holder(t *testing.T) string {
	t.Helper()
	l, err := a.CoordinationV1().Leases("mesh").Get(t.Context(), "plane", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return *l.Spec.HolderIdentity
}

// replica is one of those that want to lead.
type replica struct {
	*Lease
	log   bytes.Buffer
	stop  context.CancelFunc
	terms int
	why   error // why lead's context ended last
	ended chan struct{}
}

// leaders counts those who lead at the same time.
type leaders struct {
	t   *testing.T
	now atomic.Int32
}

// start starts a replica; without anything else to do it leads until it must not.
func (ls *leaders) start(a *api, identity string, run ...func(context.Context) error) *replica {
	r := &replica{ended: make(chan struct{})}
	r.Lease = New(Config{Leases: a.CoordinationV1(), Namespace: "mesh", Name: "plane", Identity: identity,
		Log: slog.New(slog.NewTextHandler(&r.log, nil))})
	lead := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	if len(run) > 0 {
		lead = run[0]
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(ls.t.Context())
	go func() {
		defer close(r.ended)
		if err := r.Run(ctx, func(ctx context.Context) error {
			if ls.now.Add(1) > 1 {
				ls.t.Error("two lead at once")
			}
			defer ls.now.Add(-1)
			r.terms++
			err := lead(ctx)
			r.why = context.Cause(ctx)
			return err
		}); err != nil {
			ls.t.Error(err)
		}
	}()
	synctest.Wait()
	return r
}

func after(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a")
		b := ls.start(api, "b")
		after(time.Hour)
		if !a.Leading() || b.Leading() || a.terms != 1 {
			t.Fatalf("a leads: %v, b leads: %v, terms of a: %d", a.Leading(), b.Leading(), a.terms)
		}
		a.stop()
		<-a.ended
		synctest.Wait()
		if !b.Leading() {
			t.Error("the Lease was given back and nobody took it at once")
		}
		b.stop()
		<-b.ended
	})
}

// A Lease that is deleted is made anew at once by one of those who follow.
func TestDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a")
		a.stop()
		<-a.ended
		if got := api.holder(t); got != "" {
			t.Errorf("the one that went left the Lease to %q", got)
		}
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: "plane"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new("gone"),
			LeaseDurationSeconds: new(int32(3600)), AcquireTime: &metav1.MicroTime{Time: time.Now()}, RenewTime: &metav1.MicroTime{Time: time.Now()}}}
		if _, err := api.CoordinationV1().Leases("mesh").Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b := ls.start(api, "b")
		after(time.Minute)
		if b.Leading() {
			t.Fatal("b took what is another's for an hour")
		}
		if err := api.CoordinationV1().Leases("mesh").Delete(t.Context(), "plane", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !b.Leading() {
			t.Error("the Lease is gone and nobody made it anew at once")
		}
		b.stop()
		<-b.ended
	})
}

// Without the right to watch, a Lease that was given back is another's within a
// retry.
func TestUnwatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		api.PrependWatchReactor("leases", func(clienttesting.Action) (bool, watch.Interface, error) {
			return true, nil, apierrors.NewForbidden(coordinationv1.Resource("leases"), "plane", errors.New("no RBAC policy matched"))
		})
		a, b := ls.start(api, "a"), ls.start(api, "b")
		a.stop()
		<-a.ended
		after(handover)
		if !b.Leading() {
			t.Error("the Lease was given back and nobody took it")
		}
		b.stop()
		<-b.ended
	})
}

// What is free but cannot be taken is tried at the usual pace.
func TestFreeNotToBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a")
		a.stop()
		<-a.ended
		tries := 0
		api.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			tries++
			return true, nil, apierrors.NewForbidden(coordinationv1.Resource("leases"), "plane", errors.New("no RBAC policy matched"))
		})
		b := ls.start(api, "b")
		after(time.Minute)
		if most := int(time.Minute/RetryPeriod) + 2; tries < 5 || tries > most {
			t.Errorf("%d attempts within a minute, want at most %d", tries, most)
		}
		b.stop()
		<-b.ended
	})
}

// What leads may take its time to end: nobody else leads before it has.
func TestSlowEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(2 * Duration); return nil })
		b := ls.start(api, "b")
		a.stop()
		after(Duration + RetryPeriod)
		if b.Leading() || api.holder(t) != "a" {
			t.Errorf("the Lease went to %q while what it guards had not ended", api.holder(t))
		}
		after(Duration + handover)
		if !b.Leading() {
			t.Error("nobody leads")
		}
		b.stop()
		<-b.ended
	})
}

// A leader cut off from the API server leads no more before another one may, and
// leads again when it can.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a")
		api.fail(errors.New("connection refused"))
		after(RenewDeadline - RetryPeriod)
		if !a.Leading() {
			t.Error("a short outage cost the Lease")
		}
		after(Duration - RenewDeadline + RetryPeriod)
		if a.Leading() || !errors.Is(a.why, errLost) {
			t.Errorf("leads: %v though it cannot renew; its context ended by %v", a.Leading(), a.why)
		}
		api.work()
		after(handover)
		if !a.Leading() || a.terms != 2 {
			t.Errorf("leads: %v in term %d after the outage", a.Leading(), a.terms)
		}
		a.stop()
		<-a.ended
		if n := strings.Count(a.log.String(), "connection refused"); n != 1 {
			t.Errorf("the outage was logged %d times:\n%s", n, &a.log)
		}
	})
}

// Somebody else's name in the Lease ends a term, and it is not given back.
func TestTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		a := ls.start(api, "a")
		l, err := api.CoordinationV1().Leases("mesh").Get(t.Context(), "plane", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		l = l.DeepCopy()
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(3600)), AcquireTime: &metav1.MicroTime{Time: time.Now()}, RenewTime: &metav1.MicroTime{Time: time.Now()}}
		api.other.Store(l)
		after(RenewDeadline + RetryPeriod)
		if a.Leading() || api.holder(t) != "b" {
			t.Errorf("leads: %v, the Lease is %q's", a.Leading(), api.holder(t))
		}
		a.stop()
		<-a.ended
	})
}

// What leads and fails gives others a try, and tries again itself.
func TestFailure(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("broken") },
		"panic": func(context.Context) error { panic("broken") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api, ls := newAPI(), &leaders{t: t}
				r := ls.start(api, "a", fail)
				after(10 * time.Minute)
				if r.Leading() || r.terms < 10 || r.terms > 30 || !strings.Contains(r.log.String(), "broken") {
					t.Errorf("led %d times, leads: %v:\n%s", r.terms, r.Leading(), &r.log)
				}
				b := ls.start(api, "b")
				after(maxPause)
				if !b.Leading() {
					t.Error("nobody else was given a try")
				}
				r.stop()
				b.stop()
				<-r.ended
				<-b.ended
			})
		})
	}
}

// A replica that may not have the Lease says so once, and what it needs.
func TestForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, ls := newAPI(), &leaders{t: t}
		api.fail(apierrors.NewForbidden(coordinationv1.Resource("leases"), "plane", errors.New("no RBAC policy matched")))
		a := ls.start(api, "a")
		after(10 * time.Minute)
		a.stop()
		<-a.ended
		if n := strings.Count(a.log.String(), "its account needs get, create and update on leases"); n != 1 {
			t.Errorf("said %d times:\n%s", n, &a.log)
		}
	})
}
