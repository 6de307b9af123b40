//go:build kube

package installed

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/integration/script"
)

// clusterHost is the cluster as the host of scripts. What a script has in its folder
// is applied and follows the folder; what it asks `culvert` for is answered by this
// program (see verbs.go), from the cluster's API alone.
//
//	script ─ cp, rm ─▶ folder ─▶ kubectl apply, delete ─▶ cluster
//	       ─ culvert exec, ps, log… ─▶ kubectl exec, get, logs ─▶ cluster
//
// Scripts have the same namespaces, so that one runs at a time.
type clusterHost struct{}

func (clusterHost) Name() string   { return "kube" }
func (clusterHost) Parallel() bool { return false }

// echoImage is what the scripts' pods run in the place of culvert/echo, which a
// node would take for an image of a public registry.
const echoImage = "culvert.test/echo:v1"

// runScripts runs them all, with the program that they talk to in their PATH.
func runScripts(t *testing.T) {
	program := filepath.Join(os.Getenv("CULVERT_BIN"), "culvert")
	if r := run(the.kube, "pack", echoImage, program+" component echo"); r.err != nil {
		t.Fatal(r.err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(the.kube), "host")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "culvert")); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if err := os.Setenv("CULVERT_KUBE_PROGRAM", the.kube); err != nil {
		t.Fatal(err)
	}
	script.Run(t, "../scripts", clusterHost{}, os.Environ())
}

func (clusterHost) Setup(e *testscript.Env) error {
	example, err := filepath.Abs("../../examples/shop")
	if err != nil {
		return err
	}
	e.Setenv("PATH", filepath.Join(filepath.Dir(the.kube), "host")+":"+os.Getenv("PATH"))
	e.Setenv("SHOP", example)
	e.Setenv("SERVICES", servicePrefix())
	e.Setenv("PODS", podPrefix())
	e.Setenv("REVERSED", fmt.Sprintf("%d.10", 98+number()))
	for _, name := range []string{"KUBECONFIG", "CULVERT_KUBE_PROGRAM", "CULVERT_KUBE_NUMBER", "CULVERT_KUBE", "HOME"} {
		e.Setenv(name, os.Getenv(name))
	}
	w := session(filepath.Join(e.WorkDir, sessionDir))
	if err := os.Mkdir(string(w), 0o755); err != nil {
		return err
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		w.follow(stop)
	}()
	e.Defer(func() {
		close(stop)
		<-done
		if tb, ok := e.T().(interface{ Failed() bool }); ok && tb.Failed() {
			e.T().Log(w.story())
		}
		if err := w.takeDown(); err != nil {
			e.T().Log(err.Error())
		}
	})
	return nil
}

// Kill ends the first process of a container, as the kernel would.
func (clusterHost) Kill(ts *testscript.TestScript, what string) error {
	m, err := observe(session(filepath.Join(ts.Getenv("WORK"), sessionDir)))
	if err != nil {
		return err
	}
	p := m.find(what)
	if p == nil || p.container() == "" {
		return fmt.Errorf("%s does not run", what)
	}
	return run(the.kube, "exec", p.Spec.NodeName, "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", p.container()).err
}

// KeepDead is not what Kubernetes lets anybody do: it waits longer each time.
func (clusterHost) KeepDead(*testscript.TestScript, string) (func(), error) {
	return nil, errors.New("keepdead: a kubelet starts what dies later each time; a script says [laptop]")
}

// session is a script's folder of what this host knows of it, below the script's own.
//
//	folder    what `culvert up` was given        objects  what of it is on the cluster
//	trouble   why the last apply failed          restarts how often what had restarted before
type session string

const sessionDir = ".cluster"

func (s session) path(name string) string { return filepath.Join(string(s), name) }
func (s session) read(name string) string {
	raw, _ := os.ReadFile(s.path(name))
	return string(raw)
}

func (s session) write(name, content string) error {
	if err := os.WriteFile(s.path(name+".new"), []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(s.path(name+".new"), s.path(name))
}

// follow applies the folder again when something in it has changed.
func (s session) follow(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		folder := s.read("folder")
		if folder == "" {
			continue
		}
		text, err := readFolder(folder)
		if err == nil && text != s.read("applied") {
			err = s.apply(text)
		}
		if err != nil {
			_ = s.write("trouble", err.Error())
		}
	}
}

// readFolder returns a folder's documents.
func readFolder(folder string) (string, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return "", err
	}
	var all []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		all = append(all, string(raw))
	}
	return strings.Join(all, "\n---\n"), nil
}

// apply makes the cluster have what a folder has, and no more of what it had.
func (s session) apply(text string) error {
	objects, err := translate(text)
	if err != nil {
		return err
	}
	var documents []string
	now := map[string]bool{}
	for _, o := range objects {
		documents = append(documents, o.yaml)
		now[o.key()] = true
	}
	// A new namespace's account is made by a controller, a moment later.
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		r := kubectlWith(strings.Join(documents, "---\n"), "apply", "-f", "-")
		if err = r.err; err == nil || time.Now().After(end) || !strings.Contains(r.stderr, "serviceaccount") {
			break
		}
	}
	for _, key := range strings.Fields(s.read("objects")) {
		if err != nil || now[key] {
			continue
		}
		ns, object, _ := strings.Cut(key, ":")
		err = kubectlWith("", "delete", "--wait=false", "--ignore-not-found", "-n", ns, object).err
	}
	if err != nil {
		return errors.Join(err, s.write("applied", text))
	}
	return errors.Join(s.write("trouble", ""), s.write("objects", strings.Join(slices.Sorted(maps.Keys(now)), "\n")), s.write("applied", text))
}

// takeDown removes the namespaces of a script, its pods first: a namespace waits for
// their graceful ends.
func (s session) takeDown() error {
	var spaces []string
	for _, key := range strings.Fields(s.read("objects")) {
		if name, ok := strings.CutPrefix(key, "default:Namespace/"); ok {
			spaces = append(spaces, name)
		}
	}
	if len(spaces) == 0 {
		return nil
	}
	if err := os.Remove(s.path("folder")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, ns := range spaces {
		if err := kubectlWith("", "delete", "deployments,gateways,pods", "--all", "-n", ns, "--grace-period=1", "--wait=false").err; err != nil {
			return err
		}
	}
	err := kubectlWith("", append([]string{"delete", "namespace", "--timeout=60s"}, spaces...)...).err
	return errors.Join(err, s.write("objects", ""))
}

// story is what a person wants to read of a script that failed.
func (s session) story() string {
	return kubectlWith("", "get", "pods,services,gateways", "-A", "-o", "wide").stdout + s.read("trouble") +
		kubectlWith("", "get", "events", "-n", "app", "--sort-by=.lastTimestamp").stdout
}

// kubectlWith runs kubectl, also in the program that scripts call "culvert".
func kubectlWith(stdin string, args ...string) result {
	return runFor(limit, stdin, kubeProgram(), append([]string{"kubectl"}, args...)...)
}

func kubeProgram() string {
	if p := os.Getenv("CULVERT_KUBE_PROGRAM"); p != "" {
		return p
	}
	return the.kube
}

// kubectlAttached runs kubectl with our own input and outputs, and returns its status.
func kubectlAttached(args ...string) int {
	cmd := exec.Command(kubeProgram(), append([]string{"kubectl"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
