package podns

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func TestDirFind(t *testing.T) {
	t.Parallel()
	ns, path := netnstest.Named(t, "uid-1")
	dir := Dir(filepath.Dir(path))
	found, err := dir.Find("uid-1")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if found.ID() != ns.ID() {
		t.Errorf("found %s, want %s", found.ID(), ns.ID())
	}
	if _, err := dir.Find("uid-2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown pod: %v", err)
	}
	for _, bad := range []string{"", "..", "../uid-1", "a/b"} {
		if _, err := dir.Find(mesh.PodUID(bad)); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("UID %q: %v", bad, err)
		}
	}
	if err := os.WriteFile(filepath.Join(string(dir), "plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Find("plain"); err == nil {
		t.Error("an ordinary file was taken for a namespace")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	a, _ := netnstest.Pair(t)
	mine, other := netnstest.PairA4.Addr(), netip.MustParseAddr("10.9.9.9")
	if err := Check(a, []netip.Addr{other, mine}); err != nil {
		t.Error(err)
	}
	if err := Check(a, nil); err != nil {
		t.Error(err)
	}
	if err := Check(a, []netip.Addr{other}); err == nil {
		t.Error("a namespace without the pod's address passed")
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := Check(own, nil); err == nil {
		t.Error("the node's own namespace passed")
	}
}
