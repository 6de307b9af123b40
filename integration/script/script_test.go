package script

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// paper is a host where killing leaves a note.
type paper struct{}

func (paper) Name() string { return "kube" }
func (paper) Shared() bool { return true }
func (paper) Setup(e *testscript.Env) error {
	e.Setenv("PATH", os.Getenv("PATH"))
	return nil
}

func (paper) Kill(ts *testscript.TestScript, what string) error {
	return os.WriteFile(ts.MkAbs("killed-"+what), nil, 0o644)
}

func (paper) KeepDead(*testscript.TestScript, string) (func(), error) {
	return nil, errors.New("nothing lives")
}

func (paper) Ztunnels(ts *testscript.TestScript, environ []string) error {
	return os.WriteFile(ts.MkAbs("ztunnels-"+strings.Join(environ, ",")), nil, 0o644)
}

// TestInGroups: on a shared mesh those run alone that others would notice.
func TestInGroups(t *testing.T) {
	t.Parallel()
	alone, together, err := inGroups("testdata", true)
	if err != nil || !slices.Equal(alone, []string{"testdata/hosts.txtar"}) || !slices.Equal(together, []string{"testdata/skipped.txtar"}) {
		t.Errorf("%q run alone, %q together: %v", alone, together, err)
	}
	if alone, together, _ = inGroups("testdata", false); len(alone) != 0 || len(together) != 2 {
		t.Errorf("of meshes of their own %q run alone, %q together", alone, together)
	}
	if _, _, err := inGroups(t.TempDir(), false); err == nil {
		t.Error("a folder without scripts is no error")
	}
}

func TestRun(t *testing.T) { Run(t, "testdata", paper{}, os.Environ()) }
