package app

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source/file"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/controlplane/xds/workload"
	"github.com/culvert-mesh/culvert/pkg/folder"
)

// FuzzObjects reads any YAML all the way to resources: whatever people write,
// nothing panics, and what is refused is said.
func FuzzObjects(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f.yaml"), content, 0o644); err != nil {
			t.Fatal(err)
		}
		snap := folder.Load(folder.Layers{Base: []string{dir}})
		u := file.Decode(snap)
		if len(snap.Objects) > 0 && len(u.Set) == 0 && len(u.Problems) == 0 && !onlyChecked(snap) {
			t.Errorf("%v vanished without a word", snap.Changed)
		}
		m := model.New(compile.Mesh{})
		for _, c := range m.Apply(u) {
			workload.Resources(c.Output)
			waypoint.Resources(c.Output)
		}
		m.Conditions()
	})
}

// onlyChecked reports whether all objects are of kinds that are of no use to the
// control plane.
func onlyChecked(s *folder.Snapshot) bool {
	for k := range s.Objects {
		switch k.Kind {
		case "ServiceAccount", "ConfigMap", "Secret", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "GatewayClass":
		default:
			return false
		}
	}
	return true
}
