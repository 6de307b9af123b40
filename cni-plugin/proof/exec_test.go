package proof

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPluginNames: a program is one of the folder's, whatever a configuration calls it.
func TestPluginNames(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	for _, path := range []string{"opt/cni/bin/bridge", "bin/other"} {
		path = filepath.Join(proc, "1", "root", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e := &nodeExec{proc: proc}
	for name, want := range map[string]string{"bridge": "/opt/cni/bin/bridge", "": "", ".": "", "..": "", "other": "", "../../../bin/other": "", "/bin/other": ""} {
		if got, err := e.FindInPath(name, []string{"/opt/cni/bin"}); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
