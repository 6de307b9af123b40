// This host runs whole meshes: each script under scripts/ is a session
// of a person with one, and says what that person must see.
//
//	scripts/*.txtar ─▶ this host: culvert up on this machine
//
// Scripts use the commands of testscript and those in commands() below. Each has
// a mesh of its own, named by $CULVERT_NAME, that is taken down at its end.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/integration/programs"
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
	testscript.Run(t, testscript.Params{Dir: "scripts", Setup: setup, Cmds: commands()})
}

// setup gives a script a mesh name, and the programs under test in its PATH.
func setup(e *testscript.Env) error {
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

// scriptPatience is how long a script waits for what must come.
const scriptPatience = 30 * time.Second

// commands are what scripts can do beside testscript's own commands.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		// until REGEXP CMD...   repeats CMD until it succeeds and prints REGEXP
		"until": until,
		// kill9 COMPONENT       kills the component's process; "up" is culvert itself
		"kill9": kill9,
		// keepdead COMPONENT    kills it as often as it comes back
		"keepdead": keepDead,
		// letlive COMPONENT     does so no more
		"letlive": letLive,
		// file PATH             waits until a file exists
		"file": awaitFile,
	}
}

// until repeats a command; with ! until it fails or stops printing the text.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] until REGEXP CMD [ARG...]")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	var out []byte
	for end := time.Now().Add(scriptPatience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(filepath.Join(bin, args[1]), args[2:]...)
		if _, err := os.Stat(cmd.Path); err != nil {
			cmd = exec.Command(args[1], args[2:]...)
		}
		cmd.Dir = ts.Getenv("WORK")
		cmd.Env = append(os.Environ(), "CULVERT_NAME="+ts.Getenv("CULVERT_NAME"), "PATH="+ts.Getenv("PATH"))
		out, err = cmd.CombinedOutput()
		if (err == nil && re.Match(out)) != neg {
			return
		}
	}
	ts.Fatalf("%s: after %s still: %v\n%s", strings.Join(args[1:], " "), scriptPatience, err, out)
}

// awaitFile waits until a file exists, or with ! until it does not.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] file PATH")
	}
	path := ts.MkAbs(args[0])
	for end := time.Now().Add(scriptPatience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); (err == nil) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: exists %v after %s", path, neg, scriptPatience)
		}
	}
}
