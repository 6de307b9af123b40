package podns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// TestCRIO: the namespaces of pods on a node as CRI-O leaves it.
func TestCRIO(t *testing.T) {
	t.Parallel()
	archive, err := txtar.ParseFile("testdata/crio.txtar")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	paths, ids := map[string]string{"host": "/proc/self/ns/net"}, map[string]netns.ID{}
	for _, name := range []string{"pod", "other", "web"} {
		paths[name], ids[name] = namespace(t)
	}
	for _, f := range archive.Files {
		pid, name, _ := strings.Cut(f.Name, "/")
		dir := filepath.Join(root, pid)
		if name == "net" {
			err = errors.Join(os.MkdirAll(filepath.Join(dir, "ns"), 0o755), os.Symlink(paths[strings.TrimSpace(string(f.Data))], filepath.Join(dir, "ns", "net")))
		} else {
			err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), f.Data, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	finder := NewProc(root)
	for uid, want := range map[mesh.PodUID]string{cart: "pod", web: "web"} {
		ns, err := finder.Find(uid)
		if err != nil {
			t.Fatal(err)
		}
		if ns.ID() != ids[want] {
			t.Errorf("pod %s is in %s, want %s", uid, ns.ID(), ids[want])
		}
		ns.Close()
	}
	if _, err := finder.Find(onHost); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pod on the node's network: %v", err)
	}
	all, err := finder.All()
	if err != nil || len(all) != 2 {
		t.Errorf("%d namespaces, %v", len(all), err)
	}
	for _, ns := range all {
		ns.Close()
	}
}
