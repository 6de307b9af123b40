package script

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// paper is a host where killing leaves a note.
type paper struct{}

func (paper) Name() string   { return "kube" }
func (paper) Parallel() bool { return false }
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

func TestRun(t *testing.T) { Run(t, "testdata", paper{}, os.Environ()) }
