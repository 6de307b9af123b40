package podns

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

const (
	cart    mesh.PodUID = "0d7b2f4e-1a2b-4c3d-8e9f-001122334455"
	web     mesh.PodUID = "9a8b7c6d-5e4f-4a3b-8c2d-665544332211"
	onHost  mesh.PodUID = "11111111-2222-4333-8444-555555555555"
	unknown mesh.PodUID = "ffffffff-2222-4333-8444-555555555555"
)

// TestPodOf: each line of "cgroup" in a case of testdata/cgroups is /proc/PID/cgroup of
// one process (";" between its lines), "want" the pods that they are of.
func TestPodOf(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/cgroups/*.txtar", func(t *testing.T, c *golden.Case) {
		var got strings.Builder
		for line := range strings.Lines(string(c.Section(t, "cgroup"))) {
			pod := podOf([]byte(strings.ReplaceAll(line, "; ", "\n")))
			got.WriteString(cmp.Or(string(pod), "none") + "\n")
		}
		c.Want(t, "want", got.String())
	})
}

func TestStartTime(t *testing.T) {
	t.Parallel()
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := startTime(own); err != nil || n == 0 {
		t.Errorf("this process started at %d, %v", n, err)
	}
	nasty := "7 (a) b) 5 (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 19"
	if n, err := startTime([]byte(nasty)); err != nil || n != 4711 {
		t.Errorf("started at %d, %v", n, err)
	}
	for _, bad := range []string{"", "7 (x", "7 (x) S 1"} {
		if _, err := startTime([]byte(bad)); err == nil {
			t.Errorf("%q has a start time", bad)
		}
	}
}

// procfs is a node's processes, whose namespaces are real.
type procfs struct {
	t    *testing.T
	root string
}

func (p procfs) add(pid int, pod mesh.PodUID, started int, ns string) {
	p.t.Helper()
	dir := filepath.Join(p.root, strconv.Itoa(pid))
	group := "0::/system.slice\n"
	if pod != "" {
		group = fmt.Sprintf("0::/kubepods/besteffort/pod%s/c%d\n", pod, pid)
	}
	stat := fmt.Sprintf("%d (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 0\n", pid, started)
	for name, text := range map[string]string{"cgroup": group, "stat": stat} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "ns"), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := os.Symlink(ns, filepath.Join(dir, "ns", "net")); err != nil {
		p.t.Fatal(err)
	}
}

// namespace makes one, bound at a path.
func namespace(t *testing.T) (string, netns.ID) {
	t.Helper()
	netnstest.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "net")
	ns, err := netns.New(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Delete(path) })
	return path, ns.ID()
}

func TestProc(t *testing.T) {
	t.Parallel()
	p := procfs{t, t.TempDir()}
	sandbox, id := namespace(t)
	inner, _ := namespace(t)
	own := "/proc/self/ns/net"
	if err := os.MkdirAll(filepath.Join(p.root, "sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.add(1, "", 1, own)
	p.add(90, cart, 500, inner) // a container's own namespace, and a lower number
	p.add(300, cart, 400, sandbox)
	p.add(301, cart, 450, sandbox)
	p.add(400, onHost, 10, own)
	f := NewProc(p.root)

	find := func(uid mesh.PodUID) netns.ID {
		t.Helper()
		ns, err := f.Find(uid)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		return ns.ID()
	}
	if got := find(cart); got != id {
		t.Errorf("namespace %s, want the sandbox's %s", got, id)
	}
	for _, uid := range []mesh.PodUID{onHost, unknown} {
		if _, err := f.Find(uid); !errors.Is(err, ErrNotFound) {
			t.Errorf("pod %s: %v", uid, err)
		}
	}
	// The number of a process that has ended may be another pod's.
	if err := os.RemoveAll(filepath.Join(p.root, "300")); err != nil {
		t.Fatal(err)
	}
	other, otherID := namespace(t)
	p.add(300, web, 900, other)
	if got := find(cart); got != id {
		t.Errorf("namespace %s, want that of the next oldest %s", got, id)
	}
	if got := find(web); got != otherID {
		t.Errorf("namespace %s, want %s", got, otherID)
	}
	if _, err := NewProc(filepath.Join(p.root, "nowhere")).Find(cart); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("without a procfs: %v", err)
	}
}
