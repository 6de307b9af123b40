package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

// recorder is a Handler that writes down what it is told.
type recorder struct {
	mu     sync.Mutex
	pods   map[mesh.PodUID]netns.ID
	events chan string
	refuse map[mesh.PodUID]error
	block  chan struct{} // when not nil, Add waits until it is closed
}

func newRecorder() *recorder {
	return &recorder{pods: map[mesh.PodUID]netns.ID{}, events: make(chan string, 1000), refuse: map[mesh.PodUID]error{}}
}

func (r *recorder) SnapshotBegin() { r.events <- "begin" }
func (r *recorder) SnapshotDone()  { r.events <- "done" }
func (r *recorder) Disconnected()  { r.events <- "disconnected" }

func (r *recorder) Add(ctx context.Context, uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) error {
	defer ns.Close()
	r.mu.Lock()
	block, err := r.block, r.refuse[uid]
	r.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.events <- fmt.Sprintf("add %s %s", uid, info)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods[uid] = ns.ID()
	return nil
}

func (r *recorder) Keep(uid mesh.PodUID) error { r.events <- "keep " + string(uid); return nil }

func (r *recorder) Delete(uid mesh.PodUID) error {
	r.events <- "delete " + string(uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, uid)
	return nil
}

func (r *recorder) want(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		select {
		case got := <-r.events:
			if got != want {
				t.Fatalf("event %q, want %q", got, want)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("waited in vain for %q", want)
		}
	}
}

// agent is a Server that runs, with a snapshot that can be changed.
type agent struct {
	*Server
	path string

	mu   sync.Mutex
	pods map[mesh.PodUID]Workload
}

func startAgent(t *testing.T, cfg ServerConfig) *agent {
	t.Helper()
	netnstest.RequireRoot(t)
	a := &agent{path: filepath.Join(t.TempDir(), "zds.sock"), pods: map[mesh.PodUID]Workload{}}
	cfg.Snapshot = a.snapshot
	a.Server = NewServer(a.path, cfg)
	background(t, a.Server.Run)
	await(t, "the agent listens", func() bool { _, err := os.Stat(a.path); return err == nil })
	return a
}

func (a *agent) snapshot(context.Context) ([]Workload, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Workload
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		w := a.pods[uid]
		if w.NS != nil {
			dup, err := w.NS.Dup()
			if err != nil {
				return nil, err
			}
			w.NS = dup
		}
		all = append(all, w)
	}
	return all, nil
}

func (a *agent) know(uid mesh.PodUID, ns *netns.NS) Workload {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := Workload{uid, mesh.PodInfo{Name: "pod-" + string(uid), Namespace: "shop", ServiceAccount: "sa"}, ns}
	a.pods[uid] = w
	return w
}

func (a *agent) add(t *testing.T, uid mesh.PodUID, ns *netns.NS) error {
	t.Helper()
	w := a.know(uid, ns)
	return a.Add(t.Context(), uid, w.Info, ns)
}

// background runs something until the test ends or stop is called.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := run(ctx); err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (a *agent) client(t *testing.T, r *recorder) (stop func()) {
	t.Helper()
	return background(t, NewClient(a.path, r, ClientConfig{MaxBackoff: 20 * time.Millisecond}).Run)
}

func TestSnapshotThenLive(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{})
	one, two := netnstest.New(t), netnstest.New(t)
	a.know("u1", one)
	a.know("u2", nil)
	r := newRecorder()
	r.refuse["u1"] = errors.New("no room")
	a.client(t, r)
	r.want(t, "begin", "add u1 shop/pod-u1", "keep u2", "done")
	if err := a.add(t, "u3", two); err != nil {
		t.Fatal(err)
	}
	r.want(t, "add u3 shop/pod-u3")
	r.mu.Lock()
	if r.pods["u3"] != two.ID() {
		t.Errorf("namespace %v, want %v", r.pods["u3"], two.ID())
	}
	r.mu.Unlock()
	var refused *RefusedError
	if err := a.add(t, "u1", one); !errors.As(err, &refused) || !strings.Contains(err.Error(), "no room") || !strings.Contains(err.Error(), "pod-u1") {
		t.Errorf("refused add: %v", err)
	}
	r.want(t, "add u1 shop/pod-u1")
	if err := a.Delete(t.Context(), "u3"); err != nil {
		t.Error(err)
	}
	r.want(t, "delete u3")
}

func TestNobodyConnected(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{})
	ns := netnstest.New(t)
	if err := a.add(t, "u1", ns); !errors.Is(err, ErrNoZtunnel) {
		t.Errorf("add: %v", err)
	}
	if err := a.Delete(t.Context(), "u1"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestTooLongForAPacket(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{})
	ns := netnstest.New(t)
	r := newRecorder()
	a.client(t, r)
	r.want(t, "begin", "done")
	long := mesh.PodInfo{Name: strings.Repeat("n", 2000), Namespace: "shop", ServiceAccount: "sa"}
	if err := a.Add(t.Context(), "u1", long, ns); err == nil || !strings.Contains(err.Error(), "a packet holds 1024") {
		t.Errorf("add: %v", err)
	}
	if err := a.add(t, "u2", ns); err != nil {
		t.Errorf("the session did not go on: %v", err)
	}
}

// Adds go to the newest ztunnel, deletes to all; when the newest dies, the one
// before it is given what only the newest knew.
func TestTwoZtunnels(t *testing.T) {
	t.Parallel()
	counts := make(chan int, 100)
	a := startAgent(t, ServerConfig{Connected: func(n int) { counts <- n }})
	ns := netnstest.New(t)
	older, newer := newRecorder(), newRecorder()
	a.client(t, older)
	older.want(t, "begin", "done")
	stopNewer := a.client(t, newer)
	newer.want(t, "begin", "done")
	if err := a.add(t, "u1", ns); err != nil {
		t.Fatal(err)
	}
	newer.want(t, "add u1 shop/pod-u1")
	if err := a.Delete(t.Context(), "u0"); err != nil {
		t.Fatal(err)
	}
	newer.want(t, "delete u0")
	older.want(t, "delete u0")
	stopNewer()
	older.want(t, "add u1 shop/pod-u1")
	if err := a.add(t, "u2", ns); err != nil {
		t.Fatal(err)
	}
	older.want(t, "add u2 shop/pod-u2")
	for _, want := range []int{1, 2, 1} {
		if got := <-counts; got != want {
			t.Errorf("%d ztunnels connected, want %d", got, want)
		}
	}
}

// An Add on its way to a ztunnel that dies reaches the one before it.
func TestAddFallsBack(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{})
	ns := netnstest.New(t)
	older, newer := newRecorder(), newRecorder()
	newer.block = make(chan struct{})
	a.client(t, older)
	older.want(t, "begin", "done")
	stopNewer := a.client(t, newer)
	newer.want(t, "begin", "done")
	result := make(chan error)
	go func() { result <- a.add(t, "u1", ns) }()
	await(t, "the agent has the pod", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.pods) == 1 })
	stopNewer()
	if err := <-result; err != nil {
		t.Error(err)
	}
	older.want(t, "add u1 shop/pod-u1")
}

// A ztunnel that is leaving gets no pods from an agent that has been started again,
// to which it may come back after its successor.
func TestRetired(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{})
	ns := netnstest.New(t)
	r := newRecorder()
	c := NewClient(a.path, r, ClientConfig{MaxBackoff: 20 * time.Millisecond})
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context()) }()
	drop := func() { // as an agent that ends
		a.Server.mu.Lock()
		defer a.Server.mu.Unlock()
		for _, p := range a.peers {
			p.conn.Close()
		}
	}
	r.want(t, "begin", "done")
	drop()
	r.want(t, "disconnected", "begin", "done")
	c.Retire()
	r.want(t, "disconnected")
	if err := <-ended; err != nil {
		t.Error(err)
	}

	r = newRecorder()
	c = NewClient(a.path, r, ClientConfig{})
	go func() { ended <- c.Run(t.Context()) }()
	r.want(t, "begin", "done")
	c.Retire() // its only session: pods may still be deleted
	if err := a.Delete(t.Context(), "u1"); err != nil {
		t.Error(err)
	}
	r.want(t, "delete u1")
	successor := newRecorder()
	a.client(t, successor)
	successor.want(t, "begin", "done")
	if err := a.add(t, "u2", ns); err != nil {
		t.Error(err)
	}
	successor.want(t, "add u2 shop/pod-u2")
	drop()
	r.want(t, "disconnected")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// An answer that is late fails its request, and is not taken for the next one's.
func TestLateAck(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{AckTimeout: 20 * time.Millisecond})
	ns := netnstest.New(t)
	r := newRecorder()
	r.block = make(chan struct{})
	r.refuse["u1"] = errors.New("the late answer")
	a.client(t, r)
	r.want(t, "begin", "done")
	if err := a.add(t, "u1", ns); !errors.Is(err, ErrTimeout) {
		t.Errorf("an unanswered add: %v", err)
	}
	next := make(chan error)
	go func() { next <- a.Delete(t.Context(), "u9") }()
	close(r.block)
	if err := <-next; err != nil {
		t.Errorf("the next request got the late answer: %v", err)
	}
	r.want(t, "add u1 shop/pod-u1", "delete u9")
	if a.Connected() != 1 {
		t.Error("the connection was dropped for one late answer")
	}
}

// onLog is a log handler that does something when a message is logged.
type onLog struct {
	message string
	do      func()
}

func (h onLog) Enabled(context.Context, slog.Level) bool { return true }
func (h onLog) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h onLog) WithGroup(string) slog.Handler            { return h }
func (h onLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.do()
	}
	return nil
}

// A ztunnel that is slow with one pod of the snapshot still gets the others.
func TestSlowSnapshotGoesOn(t *testing.T) {
	t.Parallel()
	r := newRecorder()
	r.block = make(chan struct{})
	overdue := onLog{"pod of the snapshot not taken by ztunnel", sync.OnceFunc(func() { close(r.block) })}
	a := startAgent(t, ServerConfig{AckTimeout: 20 * time.Millisecond, Log: slog.New(overdue)})
	ns := netnstest.New(t)
	a.know("u1", ns)
	a.know("u2", ns)
	a.client(t, r)
	r.want(t, "begin")
	r.want(t, "add u1 shop/pod-u1", "add u2 shop/pod-u2", "done")
}

// A ztunnel that never answers is given up, so that it can start over.
func TestNeverAnswers(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{AckTimeout: 10 * time.Millisecond, LateTimeout: 10 * time.Millisecond})
	c := dialRaw(t, a.path)
	send(t, c, &wire.ZdsHello{Version: wire.Version_V1})
	await(t, "it is connected", func() bool { return a.Connected() == 1 })
	await(t, "it is given up", func() bool { return a.Connected() == 0 })
}

func TestAgentDropsBadPeers(t *testing.T) {
	t.Parallel()
	a := startAgent(t, ServerConfig{AckTimeout: time.Hour})
	ack := encodeAck(nil)
	for name, talk := range map[string]func(c *net.UnixConn){
		"garbage for a hello": func(c *net.UnixConn) { c.Write([]byte{0xff, 0xff}) },
		"an ack that nothing asked for": func(c *net.UnixConn) {
			send(t, c, &wire.ZdsHello{Version: wire.Version_V1})
			send(t, c, ack) // of the snapshot
			send(t, c, ack)
		},
		"an oversize packet": func(c *net.UnixConn) { c.Write(make([]byte, 4000)) },
		"a hello and then garbage": func(c *net.UnixConn) {
			send(t, c, &wire.ZdsHello{Version: wire.Version_V1})
			c.Write([]byte("garbage"))
		},
		"nothing": func(c *net.UnixConn) { c.Close() },
	} {
		c := dialRaw(t, a.path)
		await(t, name+": connected", func() bool { return a.Connected() >= 1 })
		talk(c)
		await(t, name+": dropped", func() bool { return a.Connected() == 0 })
	}
	r := newRecorder()
	a.client(t, r)
	r.want(t, "begin", "done")
}

// A socket file that a dead agent left is taken over, and an agent that ends
// leaves its successor's in place.
func TestSocketPathHandover(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "zds.sock")
	if err := os.WriteFile(path, []byte("stale"), 0o644); err != nil {
		t.Fatal(err)
	}
	isSocket := func() bool { fi, err := os.Lstat(path); return err == nil && fi.Mode()&os.ModeSocket != 0 }
	stopFirst := background(t, NewServer(path, ServerConfig{}).Run)
	await(t, "the first listens", isSocket)
	first, _ := os.Lstat(path)
	stopSecond := background(t, NewServer(path, ServerConfig{}).Run)
	await(t, "the second listens", func() bool { now, err := os.Lstat(path); return err == nil && !os.SameFile(first, now) })
	stopFirst()
	if !isSocket() {
		t.Fatal("the first removed the second's socket")
	}
	dialRaw(t, path)
	stopSecond()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last one left its socket: %v", err)
	}
}

func TestPacer(t *testing.T) {
	t.Parallel()
	var p pacer
	now := time.Unix(1000, 0)
	for i := range 4 {
		if d := p.next(now); d != 0 {
			t.Fatalf("connection %d waits %s", i+1, d)
		}
	}
	if d := p.next(now); d != time.Second {
		t.Errorf("after five at once: wait %s, want 1s", d)
	}
	if d := p.next(now.Add(2 * time.Second)); d != 0 {
		t.Errorf("later: wait %s", d)
	}
}

// Sessions of all kinds leave no descriptor behind.
func TestNoDescriptorLeft(t *testing.T) {
	round := func(t *testing.T) {
		a := startAgent(t, ServerConfig{})
		ns := netnstest.New(t)
		a.know("u1", ns)
		r := newRecorder()
		r.refuse["u1"] = errors.New("no")
		stop := a.client(t, r)
		r.want(t, "begin", "add u1 shop/pod-u1", "done")
		for range 10 {
			a.add(t, "u1", ns)
		}
		stop()
		c := dialRaw(t, a.path)
		send(t, c, &wire.ZdsHello{Version: wire.Version_V1}, ns.FD(), ns.FD())
		c.Close()
		await(t, "all are gone", func() bool { return a.Connected() == 0 })
	}
	t.Run("first", round)
	before := netnstest.OpenFDs(t)
	t.Run("second", round)
	if after := netnstest.OpenFDs(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
