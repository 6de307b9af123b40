package eligible

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOutside(t *testing.T) {
	t.Parallel()
	f := File{
		ExcludedNamespaces: []string{"kube-system"},
		AmbientNamespaces:  map[string]bool{"shop": true, "plain": false, "mixed": false, "kube-system": true},
		Pods: map[string]Verdict{
			"shop/db":     {UID: "1", InMesh: false, Reason: "pod label istio.io/dataplane-mode=none"},
			"shop/web":    {UID: "2", InMesh: true},
			"mixed/a":     {UID: "3", InMesh: true},
			"mixed/b":     {UID: "4", Reason: "pod uses the host network"},
			"plainer/pod": {UID: "5", InMesh: true},
		},
	}
	for _, c := range []struct {
		what, namespace, name, uid string
		want                       bool
	}{
		{"excluded", "kube-system", "dns", "9", true},
		{"opted out", "shop", "db", "1", true},
		{"opted out, nobody says which", "shop", "db", "", true},
		{"another pod of that name", "shop", "db", "7", false},
		{"in the mesh", "shop", "web", "2", false},
		{"new in a mesh namespace", "shop", "new", "9", false},
		{"new outside", "plain", "new", "9", true},
		{"new where somebody is labelled", "mixed", "new", "9", false},
		{"known where somebody is labelled", "mixed", "b", "4", true},
		{"unknown namespace", "fresh", "new", "9", false},
	} {
		if got, why := f.Outside(c.namespace, c.name, c.uid); got != c.want || why == "" && got {
			t.Errorf("%s: outside %v (%s), want %v", c.what, got, why, c.want)
		}
	}
	if out, _ := (File{}).Outside("any", "pod", ""); out {
		t.Error("who knows nobody lets a pod pass")
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run", "eligibility.json")
	if _, err := Load(path); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
	want := File{Node: "node-1", AmbientNamespaces: map[string]bool{"plain": false}}
	content, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if out, _ := got.Outside("plain", "pod", ""); err != nil || !out || got.Node != "node-1" {
		t.Errorf("read back %+v, %v", got, err)
	}
	if err := Write(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(path); err == nil || got.Node != "" {
		t.Errorf("half a file: %+v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}
