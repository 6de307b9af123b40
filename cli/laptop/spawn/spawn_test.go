package spawn

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// TestChildrenLiveAsLongAsTheSpawner: not as long as some thread.
func TestChildrenLiveAsLongAsTheSpawner(t *testing.T) {
	t.Parallel()
	s := New()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	children := make([]*exec.Cmd, 10)
	for i := range children {
		children[i] = exec.Command("sleep", "1000")
		if err := s.Start(nil, children[i]); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 { // threads that end, as those of pod.Exec do
		over := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(over)
		}()
		<-over
	}
	for _, c := range children {
		if err := c.Process.Signal(nil); err != nil && !strings.Contains(err.Error(), "unsupported signal") {
			t.Errorf("a child is gone: %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range children {
		if err := c.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Errorf("a child ended with %v", err)
		}
	}
	if err := s.Start(nil, exec.Command("true")); !errors.Is(err, ErrEnded) {
		t.Errorf("Start after the end: %v", err)
	}
}

func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to make network namespaces: run the tests with sudo")
	}
	ns, err := netns.NewUnnamed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	s := New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Run(ctx)
	for _, c := range []struct {
		ns   *netns.NS
		want bool
	}{{ns, true}, {nil, false}} {
		var out strings.Builder
		cmd := exec.Command("readlink", "/proc/self/ns/net")
		cmd.Stdout = &out
		if err := s.Start(c.ns, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(out.String()) == ns.ID().String(); got != c.want {
			t.Errorf("the process was in %s", out.String())
		}
	}
}
