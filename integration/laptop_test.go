// This host runs whole meshes on this machine: each script under scripts/ is a
// session of a person with one, and says what that person must see.
//
//	scripts/*.txtar ─▶ package script ─▶ this host: culvert up
//
// Each script has a mesh of its own, named by $CULVERT_NAME, that is taken down at its
// end.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/integration/programs"
	"github.com/culvert-mesh/culvert/integration/script"
)

// bin is the folder of the programs under test.
var bin string

func TestMain(m *testing.M) {
	if os.Getenv(testProcess) == "ztunnel" {
		os.Exit(ztunnelProcess()) // a program under test, started by a test
	}
	programs.Main(m, &bin, os.Environ())
}

func TestScripts(t *testing.T) {
	script.Run(t, "scripts", laptopHost{}, os.Environ())
}

// laptopHost is this machine.
type laptopHost struct{}

func (laptopHost) Name() string { return "laptop" }
func (laptopHost) Shared() bool { return false }

// Ztunnels writes a program that runs ours with more in its environment.
func (laptopHost) Ztunnels(ts *testscript.TestScript, environ []string) error {
	path := ts.MkAbs("ztunnel-with")
	ts.Setenv("ZTUNNEL", path)
	return os.WriteFile(path, []byte("#!/bin/sh\n"+strings.Join(environ, " ")+" exec "+bin+"/ztunnel\n"), 0o755)
}

// Setup gives a script a mesh name, and the programs under test in its PATH.
func (laptopHost) Setup(e *testscript.Env) error {
	name := "t-" + strings.TrimSuffix(filepath.Base(e.WorkDir), ".txtar")
	name = strings.ToLower(regexp.MustCompile(`[^a-zA-Z0-9]+`).ReplaceAllString(strings.TrimPrefix(name, "t-script-"), "-"))
	name = fmt.Sprintf("it-%d-%s", os.Getpid(), strings.Trim(name, "-"))
	if len(name) > 32 {
		name = strings.TrimRight(name[:32], "-")
	}
	example, err := filepath.Abs("../examples/shop")
	if err != nil {
		return err
	}
	e.Setenv("CULVERT_NAME", name)
	e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	e.Setenv("BIN", bin)
	e.Setenv("SHOP", example)
	e.Setenv("SERVICES", "10.96")
	e.Setenv("PODS", "10.244")
	e.Setenv("REVERSED", "96.10")
	for _, n := range []string{name, name + "-b"} {
		dir, err := laptop.DirOf(n)
		if err != nil {
			return err
		}
		e.Defer(func() { takeDown(e, n, dir) })
	}
	return nil
}

// takeDown ends a mesh that a script left, and shows its logs when the script failed.
func takeDown(e *testscript.Env, name string, dir laptop.Dir) {
	if _, err := os.Stat(string(dir)); err != nil {
		return
	}
	if tb, ok := e.T().(interface{ Failed() bool }); ok && tb.Failed() {
		out, _ := exec.Command(filepath.Join(bin, "culvert"), "status", "--name", name).CombinedOutput()
		log, _ := exec.Command(filepath.Join(bin, "culvert"), "log", "--name", name).CombinedOutput()
		e.T().Log(fmt.Sprintf("mesh %s:\n%s\n%s", name, out, log))
	}
	if out, err := exec.Command(filepath.Join(bin, "culvert"), "down", "--name", name).CombinedOutput(); err != nil {
		e.T().Log(fmt.Sprintf("culvert down: %v\n%s", err, out))
	}
}
