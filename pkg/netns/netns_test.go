package netns_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func current(t *testing.T) netns.ID {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.ID()
}

func TestDoGoesInAndComesBack(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	home := current(t)
	if ns.ID() == home {
		t.Fatal("the new namespace is the old one")
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				var inside netns.ID
				if err := ns.Do(func() error { inside = current(t); return nil }); err != nil || inside != ns.ID() {
					t.Errorf("inside Do: %v, %v, want %v", inside, err, ns.ID())
				}
				if now := current(t); now != home {
					t.Errorf("after Do: %v, want %v", now, home)
				}
			}
		})
	}
	wg.Wait()
	want := errors.New("what fn returned")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("got %v, want %v", err, want)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a goroutine that ended inside was not noticed")
	}
	if now := current(t); now != home {
		t.Errorf("after Goexit: %v, want %v", now, home)
	}
}

// A thread that is inside a namespace is not the one that new threads are made
// from: goroutines started meanwhile stay at home.
func TestOthersStayHome(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	home := current(t)
	var wg sync.WaitGroup
	err := ns.Do(func() error {
		for range 32 {
			wg.Go(func() {
				runtime.LockOSThread() // asks for a thread of its own
				defer runtime.UnlockOSThread()
				if now := current(t); now != home {
					t.Errorf("a goroutine runs in %v, want %v", now, home)
				}
			})
		}
		wg.Wait()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNamed(t *testing.T) {
	t.Parallel()
	netnstest.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "sub", "pod")
	ns, err := netns.New(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.ID() != ns.ID() {
		t.Errorf("opened %v, want %v", again.ID(), ns.ID())
	}
	if _, err := netns.New(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("making it twice: %v", err)
	}
	for range 2 {
		if err := netns.Delete(path); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := netns.Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after delete: %v", err)
	}
	if err := again.Do(func() error { return nil }); err != nil {
		t.Errorf("a held namespace went away: %v", err)
	}
}

func TestDescriptors(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	dup, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if dup.ID() != ns.ID() || dup.FD() == ns.FD() {
		t.Errorf("dup: %v fd %d of %v fd %d", dup.ID(), dup.FD(), ns.ID(), ns.FD())
	}
	for range 2 {
		if err := dup.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := dup.Do(func() error { return nil }); err == nil {
		t.Error("a closed namespace was entered")
	}
	var none *netns.NS
	if err := errors.Join(none.Close(), none.Do(func() error { return nil })); err != nil || none.ID() != (netns.ID{}) {
		t.Errorf("nil namespace: %v, %v", err, none.ID())
	}
	for _, path := range []string{os.DevNull, "/proc/self/ns/uts"} {
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := netns.FromFD(fd); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
			t.Errorf("%s was taken for a network namespace: %v", path, err)
		}
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	var out strings.Builder
	cmd.Stdout = &out
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != ns.ID().String() {
		t.Errorf("the process runs in %s, want %s", got, ns.ID())
	}
}
