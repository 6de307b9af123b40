// Package script runs sessions of a person with a mesh: files that say what is done
// and what must be seen, the same ones wherever that mesh is.
//
//	scripts/*.txtar ──▶ Run ──▶ Host: culvert up on this machine (integration)
//	                            Host: a Kubernetes cluster       (integration/installed)
//
// Scripts have testscript's commands and these:
//
//	until REGEXP CMD...   repeats CMD until it succeeds and prints REGEXP
//	kill9 WHAT            kills the process of a component or of NAMESPACE/POD
//	keepdead COMPONENT    kills it as often as it comes back
//	letlive COMPONENT     does so no more
//	ztunnels NAME=VALUE…  ztunnels have these environment variables; before culvert up
//	                      --ztunnel node-1=$ZTUNNEL, and so on for each node
//	file PATH             waits until a file exists
//
// The host's name is a condition: a line that begins with [laptop] is run there only,
// and a comment beside it says why.
//
// Scripts run beside each other. On a host where they share a mesh, those that kill or
// replace what all of them go through run by themselves.
package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Host is where the meshes of scripts are. Its methods are called by many scripts at
// once.
type Host interface {
	// Name is what scripts call it.
	Name() string
	// Shared reports whether scripts share one mesh.
	Shared() bool
	// Setup gives a script a mesh of its own, which is taken down at the script's end,
	// and a program "culvert" in its PATH.
	Setup(*testscript.Env) error
	// Kill kills the process of a component or of NAMESPACE/POD, by the beginning of
	// its name, and returns when it is gone.
	Kill(ts *testscript.TestScript, what string) error
	// KeepDead kills a component that comes back, until stop is called.
	KeepDead(ts *testscript.TestScript, what string) (stop func(), err error)
	// Ztunnels makes a ztunnel with these environment variables what the script's
	// $ZTUNNEL means.
	Ztunnels(ts *testscript.TestScript, environ []string) error
}

// Patience is how long a script waits for what must come.
const Patience = time.Minute

// Run runs the scripts of a folder on a host. environ is that of the test.
func Run(t *testing.T, dir string, h Host, environ []string) {
	alone, together, err := inGroups(dir, h.Shared())
	if err != nil {
		t.Fatal(err)
	}
	p := testscript.Params{
		Setup: h.Setup, Cmds: commands(h, environ),
		Condition: func(name string) (bool, error) {
			switch name {
			case "laptop", "kube":
				return name == h.Name(), nil
			}
			return false, fmt.Errorf("there is no host %q", name)
		},
	}
	if p.Files = alone; len(alone) > 0 {
		testscript.RunT(inOrder{t}, p)
	}
	if p.Files = together; len(together) > 0 {
		testscript.Run(t, p)
	}
}

// disturbing are the commands that other scripts of the same mesh would notice.
var disturbing = regexp.MustCompile(`(?m)^(kill9|keepdead) (ztunnel|agent|controlplane)|^ztunnels |^exec culvert restart (ztunnel|agent|controlplane)`)

// inGroups returns a folder's scripts: those that run by themselves, if the mesh is
// shared, and the others.
func inGroups(dir string, shared bool) (alone, together []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no scripts in %s", dir)
	}
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, nil, err
		}
		if shared && disturbing.Match(text) {
			alone = append(alone, f)
		} else {
			together = append(together, f)
		}
	}
	return alone, together, nil
}

// inOrder is a test whose scripts do not run beside each other.
type inOrder struct{ *testing.T }

func (o inOrder) Parallel()     {}
func (o inOrder) Verbose() bool { return testing.Verbose() }
func (o inOrder) Run(name string, f func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { f(inOrder{t}) })
}

// commands are what scripts can do beside testscript's own commands.
func commands(h Host, environ []string) map[string]func(*testscript.TestScript, bool, []string) {
	kept := new(sync.Map) // components that are kept dead, by script's folder and name
	return map[string]func(*testscript.TestScript, bool, []string){
		"until": func(ts *testscript.TestScript, neg bool, args []string) { until(ts, environ, neg, args) },
		"file":  awaitFile,
		"kill9": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) != 1 {
				ts.Fatalf("usage: kill9 COMPONENT|NAMESPACE/POD")
			}
			ts.Check(h.Kill(ts, args[0]))
		},
		"keepdead": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) != 1 {
				ts.Fatalf("usage: keepdead COMPONENT")
			}
			stop, err := h.KeepDead(ts, args[0])
			ts.Check(err)
			stop = sync.OnceFunc(stop)
			kept.Store(ts.Getenv("WORK")+"/"+args[0], stop)
			ts.Defer(stop)
		},
		"ztunnels": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) == 0 {
				ts.Fatalf("usage: ztunnels NAME=VALUE...")
			}
			ts.Check(h.Ztunnels(ts, args))
		},
		"letlive": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) != 1 {
				ts.Fatalf("usage: letlive COMPONENT")
			}
			stop, ok := kept.LoadAndDelete(ts.Getenv("WORK") + "/" + args[0])
			if !ok {
				ts.Fatalf("%s is not kept dead", args[0])
			}
			stop.(func())()
		},
	}
}

// until repeats a command; with ! until it fails or stops printing the text.
func until(ts *testscript.TestScript, environ []string, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] until REGEXP CMD [ARG...]")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	path := lookPath(ts.Getenv("PATH"), args[1])
	var out []byte
	var took time.Duration
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(max(50*time.Millisecond, took)) {
		began := time.Now()
		cmd := exec.Command(path, args[2:]...)
		cmd.Dir = ts.Getenv("WORK")
		cmd.Env = slices.Clone(environ)
		for _, name := range []string{"CULVERT_NAME", "PATH", "WORK"} {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		out, err = cmd.CombinedOutput()
		took = time.Since(began) // half of the time is for others
		if (err == nil && re.Match(out)) != neg {
			return
		}
	}
	ts.Fatalf("%s: after %s still: %v\n%s", strings.Join(args[1:], " "), Patience, err, out)
}

// lookPath finds a program in the folders of a PATH.
func lookPath(path, name string) string {
	for _, dir := range filepath.SplitList(path) {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && !st.IsDir() {
			return filepath.Join(dir, name)
		}
	}
	return name
}

// awaitFile waits until a file exists, or with ! until it does not.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] file PATH")
	}
	path := ts.MkAbs(args[0])
	for end := time.Now().Add(Patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); (err == nil) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: exists %v after %s", path, neg, Patience)
		}
	}
}
