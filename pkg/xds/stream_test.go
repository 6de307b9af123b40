package xds_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

// ends collects the reasons for which streams ended.
type ends chan string

func (e ends) ConnectionTerminated(reason string) {
	select {
	case e <- reason:
	default:
	}
}

func (e ends) Message(string, int) {}

func (e ends) await(t *testing.T, ctx context.Context, want string) {
	t.Helper()
	select {
	case got := <-e:
		if got != want {
			t.Errorf("the stream ended for reason %s, want %s", got, want)
		}
	case <-ctx.Done():
		t.Fatalf("the stream did not end")
	}
}

func TestHowStreamsEnd(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	h, e := newHeld(), make(ends, 10)
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, Metrics: e})
	snapshot(t, ctx, c)
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, "Complete"},
		{status.Error(codes.Internal, "push failed"), "Error"},
	} {
		from := len(s.Requests())
		s.EndStreams(test.err)
		e.await(t, ctx, test.want)
		s.Await(ctx, from, isFirst)
	}
}

// TestMaxAge: a server that sends clients away by GOAWAY, as control planes do to
// spread load, costs nothing but a reconnect.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil, grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge: 100 * time.Millisecond, MaxConnectionAgeGrace: 10 * time.Millisecond,
	}))
	h, e := newHeld(), make(ends, 10)
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, Metrics: e})
	snapshot(t, ctx, c)
	e.await(t, ctx, "Reconnect")
	s.Set(typeA, "a", "1", str("one"))
	h.await(t, ctx, map[string]string{"a": "one"})
}

// TestLarge: a first response far larger than gRPC's default limit, while names
// of another type are subscribed to all the time.
func TestLarge(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	want := make(map[string]string)
	body := strings.Repeat("x", 1<<20)
	for i := range 24 {
		name := fmt.Sprint("r", i)
		want[name] = body
		s.Set(typeA, name, "1", str(body))
	}
	h, named := newHeld(), newHeld()
	c, ctx := start(t, xds.Config{Address: s.URL(), Types: []xds.Subscription{
		h.wildcard(typeA), {TypeURL: typeB, Handle: named.handle},
	}})
	for i := range 200 {
		c.Subscribe(typeB, fmt.Sprint("name", i))
	}
	snapshot(t, ctx, c)
	h.await(t, ctx, want)
}

// TestNothingIsLeft: after many streams and the end of Run there is no goroutine
// and no socket of the client's left. It is not parallel, so that it can count.
func TestNothingIsLeft(t *testing.T) {
	s := xdstest.New(t, nil)
	before := descriptors(t)
	h := newHeld()
	c, err := xds.NewClient(xds.Config{
		Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(run) }()
	s.Await(ctx, 0, isFirst)
	for range 10 {
		from := len(s.Requests())
		s.EndStreams(nil)
		s.Await(ctx, from, isFirst)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(g, "culvert/pkg/xds.(*Client)") {
			t.Errorf("left behind:\n%s", g)
		}
	}
	s.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for descriptors(t) > before {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d descriptors, %d before", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
