//go:build kube

package installed

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/integration/script"
)

// clusterHost is the cluster as the host of scripts. What a script has in its folder
// is applied and follows the folder. What it asks `culvert` for goes to this program
// (see verbs_test.go), which hands on to culvert or to kubectl, and back in the script's
// words (see names_test.go).
//
//	script ─ cp, rm ─▶ folder ─▶ kubectl apply, delete ─▶ cluster
//	       ─ culvert ps, status, log, certs, why ─▶ culvert ─▶ cluster
//	       ─ culvert exec, restart ─▶ kubectl exec, rollout ─▶ cluster
type clusterHost struct{}

func (clusterHost) Name() string { return "kube" }
func (clusterHost) Shared() bool { return true }

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
	for name, value := range map[string]string{"CULVERT_KUBE_PROGRAM": the.kube, "CULVERT_REAL": program} {
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
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
	e.Setenv("BIN", os.Getenv("CULVERT_BIN"))
	for _, name := range []string{"KUBECONFIG", "CULVERT_KUBE_PROGRAM", "CULVERT_KUBE_NUMBER", "CULVERT_KUBE", "CULVERT_REAL", "HOME", "XDG_CACHE_HOME"} {
		e.Setenv(name, os.Getenv(name))
	}
	w := session(filepath.Join(e.WorkDir, sessionDir))
	if err := os.Mkdir(string(w), 0o755); err != nil {
		return err
	}
	name := strings.TrimPrefix(filepath.Base(e.WorkDir), "script-")
	if err := w.write("suffix", fmt.Sprintf("-%s-%04x", name, rand.Uint32N(1<<16))); err != nil {
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

// Kill ends the first process of a container, as the kernel would, and waits for its
// end.
func (clusterHost) Kill(ts *testscript.TestScript, what string) error {
	m, err := observe(sessionOf(ts))
	if err != nil {
		return err
	}
	p := m.find(what)
	if p == nil || p.container() == "" {
		return fmt.Errorf("%s does not run", what)
	}
	end := `ctr -n k8s.io tasks kill --signal SIGKILL ID && while ctr -n k8s.io tasks ls | grep -q "^ID .*RUNNING"; do sleep 0.02; done`
	return run(the.kube, "exec", p.Spec.NodeName, "sh", "-c", strings.ReplaceAll(end, "ID", p.container())).err
}

// KeepDead kills what a Deployment keeps alive, and lets it make no other.
func (h clusterHost) KeepDead(ts *testscript.TestScript, what string) (stop func(), err error) {
	if what != "controlplane" {
		return nil, fmt.Errorf("keepdead %s: only the control plane of a cluster can be kept dead", what)
	}
	scale := func(n string) error {
		return kubectlWith("", "scale", "deployment/culvert-controlplane", "-n", meshNamespace, "--replicas="+n).err
	}
	had := kubectlWith("", "get", "deployment/culvert-controlplane", "-n", meshNamespace, "-o", "jsonpath={.spec.replicas}")
	if had.err != nil {
		return nil, had.err
	}
	if err := scale("0"); err != nil {
		return nil, err
	}
	gone := kubectlWith("", "delete", "pods", "-n", meshNamespace, "-l", "app=culvert-controlplane", "--force", "--grace-period=0")
	return func() {
		ts.Check(scale(had.stdout))
		ts.Check(kubectlWith("", "rollout", "status", "deployment/culvert-controlplane", "-n", meshNamespace, "--timeout="+limit.String()).err)
	}, gone.err
}

// Ztunnels replaces the ztunnels of all nodes, by those that a value of the chart asks
// for, and takes that back at the script's end.
func (clusterHost) Ztunnels(ts *testscript.TestScript, environ []string) error {
	args := []string{"upgrade", "--timeout", limit.String()}
	for _, pair := range environ {
		args = append(args, "--set-string", "ztunnel.env."+pair)
	}
	ts.Setenv("ZTUNNEL", "the-image's")
	ts.Defer(func() { ts.Check(run(the.culvert, "upgrade", "--rollback", "--timeout", limit.String()).err) })
	return run(the.culvert, args...).err
}

func sessionOf(ts *testscript.TestScript) session {
	return session(filepath.Join(ts.Getenv("WORK"), sessionDir))
}

// session is a script's folder of what this host knows of it, below the script's own.
//
//	folder   what `culvert up` was given      objects   what of it is on the cluster, and
//	suffix   of the script's namespaces                 from which file
//	spaces   those namespaces                 trouble   why the last apply failed
//	applied  what the folder had then         restarts  how often what had restarted before
//	files    what kubectl is given
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

func (s session) names() names {
	return names{s.read("suffix"), strings.Fields(s.read("spaces"))}
}

// follow applies the folder again when something in it has changed, and what could not
// be applied until it can.
func (s session) follow(stop <-chan struct{}) {
	for {
		pause := 100 * time.Millisecond
		if s.read("trouble") != "" {
			pause = time.Second
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
		folder := s.read("folder")
		if folder == "" {
			continue
		}
		text, err := readFolder(folder)
		if err == nil && (fmt.Sprint(text) != s.read("applied") || s.read("trouble") != "") {
			err = s.apply(folder)
		}
		if err != nil {
			_ = s.write("trouble", err.Error())
		}
	}
}

// readFolder returns a folder's files by their names.
func readFolder(folder string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		all[filepath.Base(f)] = string(raw)
	}
	return all, nil
}

// apply makes the cluster have what a folder has, and no more of what it had.
func (s session) apply(folder string) error {
	files, err := readFolder(folder)
	if err != nil {
		return err
	}
	spaces := strings.Fields(s.read("spaces"))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, space := range spacesOf(files[name]) {
			if !slices.Contains(spaces, space) {
				spaces = append(spaces, space)
			}
		}
	}
	if err := s.write("spaces", strings.Join(spaces, "\n")); err != nil {
		return err
	}
	unread, now, err := s.writeFiles(files)
	if err != nil {
		return err
	}
	// A new namespace's account is made by a controller, a moment later.
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		r := kubectlWith("", "apply", "-f", s.path("files"))
		if err = r.err; err == nil || time.Now().After(end) || !strings.Contains(r.stderr, "serviceaccount") {
			break
		}
	}
	if e := s.prune(now, unread); err == nil {
		err = e
	}
	if err != nil {
		return errors.Join(err, s.write("applied", fmt.Sprint(files)))
	}
	return errors.Join(s.write("trouble", ""), s.write("applied", fmt.Sprint(files)))
}

// writeFiles makes the files that kubectl is given: what pods need first, then the
// folder's. Those that cannot be read are left to kubectl, and unread. now are the
// objects by their keys, each with its file.
func (s session) writeFiles(files map[string]string) (unread map[string]bool, now map[string]string, err error) {
	n := s.names()
	unread, now = map[string]bool{}, map[string]string{}
	var first []object
	for _, space := range n.spaces {
		first = append(first, object{kind: "Namespace", namespace: "default", name: n.space(space),
			json: fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`+"\n", n.space(space))})
	}
	out := map[string]string{}
	for name, text := range files {
		list, err := translate(text, n)
		if err != nil {
			out[name], unread[name] = text, true
			continue
		}
		var rest []object
		for _, o := range list {
			now[o.key()] = name
			if o.kind == "Namespace" || o.kind == "ServiceAccount" {
				first = append([]object{o}, first...) // what the folder says of a namespace counts
			} else {
				rest = append(rest, o)
			}
		}
		out[name] = documents(rest)
	}
	out["00000.yaml"] = documents(inOrder(first))
	if err := os.RemoveAll(s.path("files")); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(s.path("files"), 0o755); err != nil {
		return nil, nil, err
	}
	for name, text := range out {
		if strings.TrimSpace(text) == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(s.path("files"), name), []byte(text), 0o644); err != nil {
			return nil, nil, err
		}
	}
	return unread, now, nil
}

func documents(list []object) string {
	var all []string
	for _, o := range list {
		all = append(all, o.json)
	}
	return strings.Join(all, "---\n")
}

// prune deletes what the folder had and has no more. What was in a file that cannot be
// read now stays.
func (s session) prune(now map[string]string, unread map[string]bool) (err error) {
	for _, line := range strings.Split(s.read("objects"), "\n") {
		key, file, ok := strings.Cut(line, " ")
		if !ok || now[key] != "" {
			continue
		}
		if unread[file] {
			now[key] = file
			continue
		}
		ns, object, _ := strings.Cut(key, ":")
		if e := kubectlWith("", "delete", "--wait=false", "--ignore-not-found", "-n", ns, object).err; e != nil {
			now[key], err = file, errors.Join(err, e)
		}
	}
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(now)) {
		lines = append(lines, key+" "+now[key])
	}
	return errors.Join(err, s.write("objects", strings.Join(lines, "\n")))
}

// takeDown removes the namespaces of a script, its pods first: a namespace waits for
// their graceful ends. Nobody waits for either.
func (s session) takeDown() error {
	n := s.names()
	if len(n.spaces) == 0 {
		return nil
	}
	if err := os.Remove(s.path("folder")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var all []string
	for _, space := range n.spaces {
		all = append(all, n.space(space))
		if err := kubectlWith("", "delete", "deployments,gateways,services,pods", "--all", "-n", n.space(space), "--grace-period=1", "--wait=false").err; err != nil {
			return err
		}
	}
	return kubectlWith("", append([]string{"delete", "namespace", "--wait=false"}, all...)...).err
}

// story is what a person wants to read of a script that failed.
func (s session) story() string {
	told := s.read("trouble") + kubectlWith("", "get", "pods,services,gateways", "-A", "-o", "wide").stdout
	n := s.names()
	for _, space := range n.spaces {
		told += kubectlWith("", "get", "events", "-n", n.space(space), "--sort-by=.lastTimestamp").stdout
	}
	return told
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
