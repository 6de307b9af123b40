package app

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/ztunnel/inpod"
)

func TestConfigHandover(t *testing.T) {
	t.Parallel()
	base := []string{"FAKE_CA=true", "XDS_ADDRESS="}
	with := func(more ...string) Handover { return parse(t, append(base, more...)...).Handover }
	for _, c := range []struct {
		what string
		got  Handover
		want Handover
	}{
		{"defaults", with(), Handover{Socket: "/var/run/ztunnel/ztunnel.sock.handover", Overlap: time.Hour}},
		{"beside the agent's socket", with("INPOD_UDS=/a/z"), Handover{Socket: "/a/z.handover", Overlap: time.Hour}},
		{"no agent", with("INPOD_UDS="), Handover{Overlap: time.Hour}},
		{"none", with("HANDOVER_UDS="), Handover{Overlap: time.Hour}},
		{"elsewhere, and a supervisor", with("HANDOVER_UDS=/h", "HANDOVER_FD=3"), Handover{Socket: "/h", FD: 3, Overlap: time.Hour}},
		{"a pod that is killed after a while", with("HANDOVER_UDS=", "TERMINATION_GRACE_PERIOD_SECONDS=600"), Handover{Overlap: 595 * time.Second}},
		{"told", with("HANDOVER_UDS=", "CONNECTION_TERMINATION_DEADLINE=2h"), Handover{Overlap: 2 * time.Hour}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, c.got, c.want)
		}
	}
}

func TestDiffers(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	serving := handover.Status{State: handover.Serving, Open: 1}
	for _, c := range []struct {
		what     string
		was, now handover.Status
		want     bool
	}{
		{"connections come and go", serving, handover.Status{State: handover.Serving, Open: 2}, false},
		{"the control plane goes", serving, handover.Status{State: handover.Serving, Open: 1, Contact: now, Away: true}, true},
		{"it drains", serving, handover.Status{State: handover.Draining, Open: 1}, true},
		{"a connection ends meanwhile", handover.Status{State: handover.Draining, Open: 2}, handover.Status{State: handover.Draining, Open: 1}, true},
	} {
		if got := differs(c.was, c.now); got != c.want {
			t.Errorf("%s: differs %v", c.what, got)
		}
	}
}

// TestListenersOn counts the listeners on a port: a second one is a successor's.
func TestListenersOn(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if n, err := listenersOn(port); n != 1 || err != nil {
		t.Errorf("%d listeners on %s, %v", n, netip.AddrPortFrom(netip.IPv6Unspecified(), port), err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.Close()
	if n, err := listenersOn(port); n != 0 || err != nil {
		t.Errorf("%d listeners after it was closed, %v", n, err)
	}
}

// busy is a pod's proxy whose one connection is cut by Drain.
type busy struct {
	ns       *netns.NS
	deadline time.Time // of Drain
	once     sync.Once
	closed   chan struct{}
}

func (b *busy) Listen(context.Context) error { return nil }
func (b *busy) Run(context.Context) error    { <-b.closed; return nil }
func (b *busy) Deposit()                     {}
func (b *busy) Open() int                    { return 1 }
func (b *busy) Drain(ctx context.Context)    { b.deadline, _ = ctx.Deadline() }
func (b *busy) Gone(context.Context)         {}
func (b *busy) Close()                       { b.once.Do(func() { close(b.closed); b.ns.Close() }) }

// serveStore runs a store of sockets until stop or the test's end.
func serveStore(t *testing.T, path string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- handover.NewStore(handover.StoreConfig{}).Run(ctx, path) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	hbonetest.Until(t, "the store to listen", func() bool { _, err := os.Stat(path); return err == nil })
	return stop
}

// leaver is a ztunnel with one busy pod and a store at path, which it has reached.
func leaver(t *testing.T, path string) (*App, *busy) {
	t.Helper()
	cfg := parse(t, "XDS_ADDRESS=", "FAKE_CA=true", "INPOD_UDS=", "HANDOVER_UDS="+path)
	cfg.ReadyPort, cfg.DrainTime, cfg.Handover.Overlap = 0, time.Hour, 3*time.Hour
	var a *App
	if err := logging.During(io.Discard, 0, func(w *logging.Writer) (err error) {
		a, err = New(cfg, w)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	pod := &busy{closed: make(chan struct{})}
	a.log = slog.New(slog.DiscardHandler)
	a.pods = inpod.New(inpod.Config{
		New:     func(_ mesh.PodUID, _ mesh.PodInfo, ns *netns.NS) inpod.Proxy { pod.ns = ns; return pod },
		Metrics: inpod.NewMetrics(prometheus.NewRegistry()), Log: a.log,
	})
	ns, err := netnstest.New(t).Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.pods.Add(t.Context(), "pod", mesh.PodInfo{Name: "pod", Namespace: "default"}, ns); err != nil {
		t.Fatal(err)
	}
	runStores(t, a.stores)
	hbonetest.Until(t, "the store to be reached", a.stores.Attached)
	return a, pod
}

// runStores keeps connections until the test ends.
func runStores(t *testing.T, stores handover.Stores) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, s := range stores {
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
}

// TestLeaveWhileAgentIsAway: an agent that restarts in the same rollout comes back,
// and with it the successor, to which the connections are left.
func TestLeaveWhileAgentIsAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store")
	stop := serveStore(t, path)
	a, pod := leaver(t, path)
	stop()
	hbonetest.Until(t, "the store to be gone", func() bool { return !a.stores.Attached() })

	ended := make(chan struct{})
	start := time.Now()
	go func() { defer close(ended); a.leave(t.Context()) }()
	hbonetest.Until(t, "ztunnel to leave", func() bool { return a.Status().State != handover.Starting })
	if s := a.Status(); s.State != handover.Leaving {
		t.Fatalf("%+v before there is a successor", s)
	}

	serveStore(t, path)
	hbonetest.Until(t, "the store to be reached again", a.stores.Attached)
	next := handover.NewClient(handover.ClientConfig{Path: path})
	runStores(t, handover.Stores{next})
	hbonetest.Until(t, "a successor to serve", func() bool { return next.Report(handover.Status{State: handover.Serving}) == nil })
	<-ended
	if s := a.Status(); s.State != handover.Draining {
		t.Errorf("%+v at the end", s)
	}
	if pod.deadline.Before(start.Add(a.cfg.Handover.Overlap)) {
		t.Errorf("the pod's connections may go on for %s, want %s", pod.deadline.Sub(start), a.cfg.Handover.Overlap)
	}
}

// TestLeaveAlone: who has never had a store has no successor to wait for.
func TestLeaveAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store")
	serveStore(t, path)
	a, pod := leaver(t, path)
	a.stores = handover.Stores{handover.NewClient(handover.ClientConfig{Path: path + ".none"})}
	start := time.Now()
	a.leave(t.Context())
	if a.Status().State != handover.Draining || pod.deadline.After(start.Add(a.cfg.Handover.Overlap)) {
		t.Errorf("%+v, and the pod's connections may go on for %s, want %s", a.Status(), pod.deadline.Sub(start), a.cfg.DrainTime)
	}
}
