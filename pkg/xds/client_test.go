package xds_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

const (
	typeA = "type.googleapis.com/google.protobuf.StringValue"
	typeB = "type.googleapis.com/google.protobuf.BytesValue"
)

// held is what a handler has accepted, and the log of what it was given.
type held struct {
	mu      sync.Mutex
	values  map[string]string
	calls   []string
	changed chan struct{}
}

func newHeld() *held { return &held{values: map[string]string{}, changed: make(chan struct{})} }

// handle rejects values that start with "bad".
func (h *held) handle(added []xds.Resource, removed []string) (rejected []xds.Rejected) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var call []string
	for _, name := range removed {
		delete(h.values, name)
		call = append(call, "-"+name)
	}
	for _, r := range added {
		var v wrapperspb.StringValue
		if err := proto.Unmarshal(r.Body.Value, &v); err != nil {
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
			continue
		}
		call = append(call, "+"+r.Name)
		if strings.HasPrefix(v.Value, "bad") {
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: errors.New("value: is bad")})
			continue
		}
		h.values[r.Name] = v.Value
	}
	h.calls = append(h.calls, strings.Join(call, " "))
	close(h.changed)
	h.changed = make(chan struct{})
	return rejected
}

// await waits until the accepted values are the wanted ones.
func (h *held) await(t *testing.T, ctx context.Context, want map[string]string) {
	t.Helper()
	for {
		h.mu.Lock()
		got, changed := maps.Clone(h.values), h.changed
		h.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("holds %v, want %v", got, want)
		}
	}
}

func (h *held) log() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

func (h *held) wildcard(typeURL string) xds.Subscription {
	return xds.Subscription{TypeURL: typeURL, Wildcard: true, Handle: h.handle}
}

// start runs a client until the test ends and waits for its goroutines.
func start(t *testing.T, cfg xds.Config) (*xds.Client, context.Context) {
	t.Helper()
	return startWith(t, cfg, func(*xds.Client) {})
}

// startWith is start, with something to do before Run.
func startWith(t *testing.T, cfg xds.Config, prepare func(*xds.Client)) (*xds.Client, context.Context) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := xds.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	prepare(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wait, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(stop)
	return c, wait
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

func str(s string) proto.Message { return wrapperspb.String(s) }

func snapshot(t *testing.T, ctx context.Context, c *xds.Client) {
	t.Helper()
	select {
	case <-c.FirstSnapshot():
	case <-ctx.Done():
		t.Fatal("no first snapshot")
	}
}

func isAck(r *discovery.DeltaDiscoveryRequest) bool {
	return r.GetResponseNonce() != "" && r.GetErrorDetail() == nil
}

func isNack(r *discovery.DeltaDiscoveryRequest) bool { return r.GetErrorDetail() != nil }

func isFirst(r *discovery.DeltaDiscoveryRequest) bool { return r.GetNode() != nil }

func TestFirstRequestsAndSnapshot(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Set(typeA, "a", "1", str("one"))
	a, b := newHeld(), newHeld()
	c, ctx := start(t, xds.Config{
		Address: s.URL(), NodeID: "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local",
		NodeMetadata: map[string]any{"NODE_NAME": "node-1"},
		Headers:      map[string]string{"x-extra": "yes"},
		Token:        func() (string, error) { return "secret", nil }, ClusterID: "Kubernetes",
		Types: []xds.Subscription{a.wildcard(typeA), b.wildcard(typeB)},
	})
	snapshot(t, ctx, c)
	a.await(t, ctx, map[string]string{"a": "one"})
	if !c.Connected() || c.LastContact().IsZero() {
		t.Error("not connected after the first snapshot")
	}
	s.Await(ctx, 2, isAck)
	for i, r := range s.Requests()[:2] {
		if r.GetTypeUrl() != []string{typeA, typeB}[i] || !isFirst(r) || r.GetNode().GetId() == "" ||
			r.GetNode().GetMetadata().GetFields()["NODE_NAME"].GetStringValue() != "node-1" ||
			len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe())+len(r.GetInitialResourceVersions()) != 0 {
			t.Errorf("request %d = %v, want an empty first one of its type with the node", i, r)
		}
	}
	ack := s.Await(ctx, 2, isAck)
	if ack.GetNode() != nil || len(ack.GetResourceNamesSubscribe()) != 0 {
		t.Errorf("ACK = %v, want type and nonce only", ack)
	}
	h := s.Headers()[0]
	if h.Get("authorization")[0] != "Bearer secret" || h.Get("clusterid")[0] != "Kubernetes" || h.Get("x-extra")[0] != "yes" {
		t.Errorf("headers = %v, want the token: the control plane is on this machine", h)
	}
}

// TestNack: what is good in a response counts, what is bad is told by name, keeps
// its last good value and gets better later.
func TestNack(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Set(typeA, "a", "1", str("one"))
	s.Set(typeA, "b", "1", str("bad"))
	h := newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}})
	nack := s.Await(ctx, 0, isNack)
	if got := nack.GetErrorDetail().GetMessage(); got != "b: value: is bad" {
		t.Errorf("NACK says %q", got)
	}
	h.await(t, ctx, map[string]string{"a": "one"})
	select {
	case <-c.FirstSnapshot():
		t.Error("a rejected response counted as the first snapshot")
	default:
	}
	s.Set(typeA, "b", "2", str("two"))
	snapshot(t, ctx, c)
	h.await(t, ctx, map[string]string{"a": "one", "b": "two"})
	from := len(s.Requests())
	s.Set(typeA, "a", "2", str("bad again"))
	s.Await(ctx, from, isNack)
	h.await(t, ctx, map[string]string{"a": "one", "b": "two"})

	from = len(s.Requests())
	s.EndStreams(nil)
	r := s.Await(ctx, from, isFirst)
	if want := map[string]string{"a": "1", "b": "2"}; !maps.Equal(r.GetInitialResourceVersions(), want) {
		t.Errorf("versions after reconnect = %v, want those that are held, %v", r.GetInitialResourceVersions(), want)
	}
}

func TestMalformedResources(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	h := newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}})
	snapshot(t, ctx, c)
	from := len(s.Requests())
	s.Push(&discovery.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/never.Asked"})
	s.Push(&discovery.DeltaDiscoveryResponse{TypeUrl: typeA, Resources: []*discovery.Resource{{Name: "empty"}}})
	if got := s.Await(ctx, from, isNack).GetErrorDetail().GetMessage(); got != "empty: resource: empty" {
		t.Errorf("NACK says %q", got)
	}
	from = len(s.Requests())
	wrong := &discovery.Resource{Name: "wrong"}
	wrong.Resource, _ = anyOf(typeB, "x")
	s.Push(&discovery.DeltaDiscoveryResponse{TypeUrl: typeA, Resources: []*discovery.Resource{wrong}})
	if got := s.Await(ctx, from, isNack).GetErrorDetail().GetMessage(); !strings.Contains(got, typeB) {
		t.Errorf("NACK says %q, want the wrong type named", got)
	}
}

// TestResume: after a reconnect only differences travel, in both directions.
func TestResume(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	for i := range 5 {
		s.Set(typeA, fmt.Sprint("r", i), "1", str(fmt.Sprint(i)))
	}
	h := newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}})
	snapshot(t, ctx, c)
	s.Await(ctx, 0, isAck)
	s.Stop()
	s.Remove(typeA, "r0")
	s.Set(typeA, "r1", "2", str("changed"))
	s.Set(typeA, "new", "1", str("new"))
	s.Start()
	h.await(t, ctx, map[string]string{"r1": "changed", "r2": "2", "r3": "3", "r4": "4", "new": "new"})
	if got, want := h.log()[1:], []string{"-r0 +new +r1"}; !slices.Equal(got, want) {
		t.Errorf("handled after the reconnect: %q, want %q", got, want)
	}
}

// TestResetMidResource breaks the connection at many places inside a large
// response: what was held is still held, and the rest comes.
func TestResetMidResource(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Set(typeA, "first", "1", str("first"))
	h := newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}})
	snapshot(t, ctx, c)
	want := map[string]string{"first": "first"}
	for i, cut := range []int{1, 9, 10, 100, 5_000, 60_000} {
		from := len(s.Requests())
		s.Hold(true)
		for j := range 20 {
			name := fmt.Sprintf("r%d-%d", i, j)
			want[name] = strings.Repeat(name, 1000)
			s.Set(typeA, name, "1", str(want[name]))
		}
		s.CutAfter(cut)
		s.Hold(false)
		r := s.Await(ctx, from, isFirst)
		if len(r.GetInitialResourceVersions()) < 1+20*i {
			t.Errorf("cut after %d bytes: client held only %d resources", cut, len(r.GetInitialResourceVersions()))
		}
		h.await(t, ctx, want)
	}
}

// TestControlPlaneAway: the state stays, the snapshot stays, and it reconnects.
func TestControlPlaneAway(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Stop()
	h := newHeld()
	m := &meter{ends: map[string]int{}, bytes: map[string]int{}, failed: make(chan struct{})}
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, Metrics: m})
	select {
	case <-m.failed:
	case <-ctx.Done():
		t.Fatal("no attempt failed")
	}
	if c.Connected() {
		t.Error("connected to nothing")
	}
	s.Set(typeA, "a", "1", str("one"))
	s.Start()
	snapshot(t, ctx, c)
	h.await(t, ctx, map[string]string{"a": "one"})
	s.Stop()
	h.await(t, ctx, map[string]string{"a": "one"})
	s.Set(typeA, "a", "2", str("two"))
	s.Start()
	h.await(t, ctx, map[string]string{"a": "two"})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ends["ConnectionError"] == 0 || m.ends["Error"] == 0 || m.bytes[typeA] == 0 {
		t.Errorf("metrics: ends %v, bytes %v", m.ends, m.bytes)
	}
}

type meter struct {
	mu     sync.Mutex
	ends   map[string]int
	bytes  map[string]int
	failed chan struct{}
}

func (m *meter) ConnectionTerminated(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ends[reason]++; reason == "ConnectionError" && m.ends[reason] == 1 {
		close(m.failed)
	}
}

func (m *meter) Message(typeURL string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes[typeURL] += n
}

func TestByName(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Set(typeA, "a", "1", str("one"), "net/10.0.0.1")
	s.Set(typeA, "b", "1", str("two"))
	h, all := newHeld(), newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{
		{TypeURL: typeA, Handle: h.handle}, all.wildcard(typeB),
	}})
	snapshot(t, ctx, c)
	r := s.Await(ctx, 0, func(r *discovery.DeltaDiscoveryRequest) bool { return r.GetTypeUrl() == typeA })
	if !slices.Equal(r.GetResourceNamesSubscribe(), []string{"*"}) || !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Errorf("first request = %v, want to subscribe to nothing", r)
	}
	c.Subscribe(typeA, "net/10.0.0.1", "missing")
	h.await(t, ctx, map[string]string{"a": "one"})
	c.Subscribe(typeA, "b")
	h.await(t, ctx, map[string]string{"a": "one", "b": "two"})
	if !slices.ContainsFunc(h.log(), func(call string) bool { return strings.Contains(call, "-missing") }) {
		t.Errorf("handled %q, want to be told that a name does not exist", h.log())
	}
	c.Unsubscribe(typeA, "b")
	s.Await(ctx, 0, func(r *discovery.DeltaDiscoveryRequest) bool {
		return slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"b"})
	})
	from := len(s.Requests())
	s.EndStreams(nil)
	r = s.Await(ctx, from, isFirst)
	if want := []string{"missing", "net/10.0.0.1"}; !slices.Equal(r.GetResourceNamesSubscribe(), want) {
		t.Errorf("after reconnect subscribes to %q, want %q", r.GetResourceNamesSubscribe(), want)
	}
	if want := map[string]string{"a": "1", "missing": ""}; !maps.Equal(r.GetInitialResourceVersions(), want) {
		t.Errorf("after reconnect tells %v, want %v", r.GetInitialResourceVersions(), want)
	}
}

func TestDialer(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	h := newHeld()
	dialled := make(chan string, 10)
	c, ctx := start(t, xds.Config{
		Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			dialled <- address
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		},
	})
	snapshot(t, ctx, c)
	if got := "http://" + <-dialled; got != s.URL() {
		t.Errorf("dialled %s, want %s", got, s.URL())
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	sub := newHeld().wildcard(typeA)
	for what, cfg := range map[string]xds.Config{
		"no port":         {Address: "https://istiod", Log: log},
		"scheme":          {Address: "ftp://istiod:1", Log: log},
		"no address":      {Log: log},
		"no logger":       {Address: "a:1"},
		"no type":         {Address: "a:1", Log: log, Types: []xds.Subscription{{Handle: sub.Handle}}},
		"no handler":      {Address: "a:1", Log: log, Types: []xds.Subscription{{TypeURL: typeA}}},
		"type twice":      {Address: "a:1", Log: log, Types: []xds.Subscription{sub, sub}},
		"metadata values": {Address: "a:1", Log: log, NodeMetadata: map[string]any{"x": struct{}{}}},
	} {
		if _, err := xds.NewClient(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
