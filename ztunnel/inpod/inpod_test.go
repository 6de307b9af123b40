package inpod

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// fakeProxy is a proxy without sockets, whose connections end when told.
type fakeProxy struct {
	ns *netns.NS

	mu      sync.Mutex
	fail    error // of Listen
	state   string
	stopped chan struct{}
	once    sync.Once
}

func (f *fakeProxy) set(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s != "up" || f.state == "" { // Run may start after the end
		f.state = s
	}
}

func (f *fakeProxy) get() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeProxy) Listen(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fail
}

func (f *fakeProxy) Run(ctx context.Context) error {
	f.set("up")
	select {
	case <-ctx.Done():
		f.Close()
	case <-f.stopped:
	}
	return nil
}

func (f *fakeProxy) Deposit()  { f.set("deposited") }
func (f *fakeProxy) Open() int { return 1 }

func (f *fakeProxy) Drain(ctx context.Context) { f.set("draining"); <-ctx.Done(); f.Close() }
func (f *fakeProxy) Gone(context.Context)      { f.set("gone"); f.Close() }
func (f *fakeProxy) Close() {
	f.once.Do(func() { close(f.stopped); f.ns.Close() })
}

type fixture struct {
	*Pods
	fail    error
	made    []*fakeProxy
	ready   bool
	metrics *prometheus.Registry
}

func newFixture() *fixture {
	f := &fixture{metrics: prometheus.NewRegistry()}
	f.Pods = New(Config{
		New: func(_ mesh.PodUID, _ mesh.PodInfo, ns *netns.NS) Proxy {
			p := &fakeProxy{ns: ns, fail: f.fail, stopped: make(chan struct{})}
			f.made = append(f.made, p)
			return p
		},
		Ready:   func() { f.ready = true },
		Metrics: NewMetrics(f.metrics),
		Log:     slog.New(slog.DiscardHandler),
	})
	return f
}

func (f *fixture) add(t *testing.T, uid mesh.PodUID, ns *netns.NS) error {
	t.Helper()
	dup, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return f.Add(t.Context(), uid, mesh.PodInfo{Name: string(uid), Namespace: "default"}, dup)
}

// metric returns the value of one of the family workload_manager_*.
func (f *fixture) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families {
		if m.GetName() == "workload_manager_"+name {
			v := m.GetMetric()[0]
			return v.GetGauge().GetValue() + v.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func (f *fixture) names() map[mesh.PodUID]bool {
	up := map[mesh.PodUID]bool{}
	for _, s := range f.States() {
		up[s.UID] = s.Up
	}
	return up
}

// TestSnapshot holds that a snapshot drops exactly the pods it does not name.
func TestSnapshot(t *testing.T) {
	ns := netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.SnapshotBegin()
		for _, uid := range []mesh.PodUID{"a", "b", "c"} {
			if err := f.add(t, uid, ns); err != nil {
				t.Fatal(err)
			}
		}
		if f.ready {
			t.Error("ready before the snapshot is complete")
		}
		f.Delete("c")
		f.SnapshotDone()
		synctest.Wait()
		if up := f.names(); !f.ready || len(up) != 2 || f.made[2].get() != "gone" {
			t.Errorf("after the first snapshot: ready %v, pods %v", f.ready, up)
		}

		f.ready = false
		f.Disconnected()
		if len(f.States()) != 2 {
			t.Errorf("without the agent: %d pods", len(f.States()))
		}
		f.SnapshotBegin()
		f.Keep("a")
		f.Keep("unknown")
		if f.ready {
			t.Error("ready before the second snapshot is complete")
		}
		f.SnapshotDone()
		synctest.Wait()
		if up := f.names(); !f.ready || len(up) != 1 || !up["a"] || f.made[1].get() != "gone" {
			t.Errorf("after the second snapshot: ready %v, pods %v", f.ready, up)
		}
		if n := f.metric(t, "proxies_stopped_total"); n != 2 {
			t.Errorf("%v proxies counted as stopped", n)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		f.Drain(done)
	})
}

// TestPending holds that a pod whose ports cannot be opened is tried again, and that
// a ztunnel becomes ready without it, but not without any of several.
func TestPending(t *testing.T) {
	ns := netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.fail = errors.New("address in use")
		f.SnapshotBegin()
		for _, uid := range []mesh.PodUID{"a", "b"} {
			if err := f.add(t, uid, ns); err == nil {
				t.Error("the agent is not told")
			}
		}
		f.SnapshotDone()
		for range 2 * enoughTries {
			f.retry(t.Context())
		}
		if f.ready || f.metric(t, "pending_proxy_count") != 2 {
			t.Errorf("ready %v, and no pod is served", f.ready)
		}
		f.made[0].fail = nil
		f.retry(t.Context())
		synctest.Wait()
		if !f.ready || f.made[0].get() != "up" || f.metric(t, "active_proxy_count") != 1 {
			t.Errorf("after the retry: ready %v, %s", f.ready, f.made[0].get())
		}
		f.ready, f.fail = false, errors.New("address in use")
		f.SnapshotBegin()
		f.Keep("a")
		if err := f.add(t, "b", ns); err == nil {
			t.Error("the agent is not told")
		}
		f.SnapshotDone()
		for n := range enoughTries {
			if f.ready {
				t.Errorf("ready after %d tries with a pending pod", n)
			}
			f.retry(t.Context())
		}
		if !f.ready || f.metric(t, "pending_proxy_count") != 1 {
			t.Error("one pod that cannot be served keeps the node from being ready")
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		f.Drain(done)
	})
}

// TestReadyStays holds that neither an agent that goes and comes nor a pod whose
// ports cannot be opened takes the readiness of a ztunnel that has had it.
func TestReadyStays(t *testing.T) {
	ns := netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		ready := admin.NewReadiness()
		open, _ := ready.Gate("pods")
		fail := error(nil)
		p := New(Config{
			New: func(_ mesh.PodUID, _ mesh.PodInfo, ns *netns.NS) Proxy {
				return &fakeProxy{ns: ns, fail: fail, stopped: make(chan struct{})}
			},
			Ready:   open,
			Metrics: NewMetrics(prometheus.NewRegistry()),
			Log:     slog.New(slog.DiscardHandler),
		})
		f := &fixture{Pods: p}
		check := func(when string, want int) {
			t.Helper()
			if n := len(ready.Pending()); n != want {
				t.Errorf("%s: %d gates closed, want %d", when, n, want)
			}
		}
		f.SnapshotBegin()
		if err := f.add(t, "a", ns); err != nil {
			t.Fatal(err)
		}
		check("before the snapshot is complete", 1)
		f.SnapshotDone()
		check("after it", 0)
		f.Disconnected()
		check("without the agent", 0)
		f.SnapshotBegin()
		f.Keep("a")
		check("while it tells again", 0)
		fail = errors.New("address in use")
		if err := f.add(t, "b", ns); err == nil {
			t.Error("a pod was added that cannot be served")
		}
		f.SnapshotDone()
		check("with a pod that is pending", 0)
		done, cancel := context.WithCancel(t.Context())
		cancel()
		f.Drain(done)
	})
}

// TestMovedPod holds that a pod whose namespace is another one gets a new proxy
// while the old one ends, and that the same namespace changes nothing.
func TestMovedPod(t *testing.T) {
	one, two := netnstest.New(t), netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.SnapshotBegin()
		f.SnapshotDone()
		for _, ns := range []*netns.NS{one, one, two} {
			if err := f.add(t, "a", ns); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(f.made) != 2 || f.made[0].get() != "gone" || f.made[1].get() != "up" {
			t.Errorf("%d proxies", len(f.made))
		}
		deadline, cancel := context.WithCancel(t.Context())
		go func() {
			synctest.Wait()
			cancel()
		}()
		f.Drain(deadline)
		if s := f.made[1].get(); s != "draining" {
			t.Errorf("the pod was not drained: %s", s)
		}
	})
}

// TestFailedProxy holds that a pod whose proxy fails is pending until it has
// another one, and that nobody mistakes it for one that was told to end.
func TestFailedProxy(t *testing.T) {
	ns := netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.SnapshotBegin()
		if err := f.add(t, "a", ns); err != nil {
			t.Fatal(err)
		}
		f.SnapshotDone()
		synctest.Wait()
		f.made[0].Close() // Run ends, unasked
		synctest.Wait()
		if up := f.names(); up["a"] || f.metric(t, "pending_proxy_count") != 1 {
			t.Errorf("after the failure: pods %v", up)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go f.Run(ctx)
		time.Sleep(2 * failPause)
		synctest.Wait()
		if len(f.made) != 2 || f.made[1].get() != "up" {
			t.Errorf("not served again: %d proxies", len(f.made))
		}
		cancel()
		f.Drain(ctx)
		if len(f.made) != 2 {
			t.Errorf("%d proxies after the drain", len(f.made))
		}
	})
}

// TestDraining holds that a ztunnel that leaves takes no more pods, and lets go of
// those that do.
func TestDraining(t *testing.T) {
	ns := netnstest.New(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		for _, uid := range []mesh.PodUID{"a", "b"} {
			if err := f.add(t, uid, ns); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.Open(); n != 2 {
			t.Errorf("%d connections open", n)
		}
		f.Deposit()
		if f.made[0].get() != "deposited" {
			t.Error("not deposited")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Drain(ctx) }()
		synctest.Wait()
		if err := f.add(t, "c", ns); !errors.Is(err, errDraining) {
			t.Errorf("added while draining: %v", err)
		}
		f.Delete("a")
		synctest.Wait()
		if s := f.made[0].get(); s != "gone" {
			t.Errorf("the pod that left is %s", s)
		}
		f.Disconnected()
		cancel()
		<-done
	})
}
