//go:build kube

// Package installed tests the mesh as its users get it: on a real Kubernetes cluster,
// from images, by `culvert install`, with pods that know nothing of it.
//
//	integration/kube up ──▶ images loaded ──▶ culvert install ──▶ tests ──▶ culvert uninstall
//
// The tests run in the order in which they are written: the last ones upgrade the mesh
// under load, take it back, and take it away. CULVERT_BIN is the folder of the command
// line's program, CULVERT_IMAGES that of the images' archives.
package installed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// limit is of everything that is waited for: a machine may be very busy.
const limit = 4 * time.Minute

// the is what all tests work with.
var the struct {
	kube    string // the program of integration/kube
	culvert string
	wasUp   bool
}

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "culvert" { // a script talks to the cluster
		os.Exit(asCulvert(os.Args[1:]))
	}
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "installed:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// testMain brings up what is not up, and takes down what it has brought up.
func testMain(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "culvert-installed-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	the.kube, the.culvert = filepath.Join(dir, "kube"), filepath.Join(os.Getenv("CULVERT_BIN"), "culvert")
	build := exec.Command("go", "build", "-o", the.kube, "../kube")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build integration/kube: %w\n%s", err, out)
	}
	if kubectl("get", "nodes").err == nil {
		the.wasUp = true
	} else {
		defer func() { err = errors.Join(err, run(the.kube, "down").err) }()
	}
	if up := run(the.kube, "up"); up.err != nil {
		return 1, up.err
	}
	if err := prepare(); err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 {
		fmt.Print(run(the.kube, "report", kept()).stdout)
		fmt.Println("installed: all logs are kept in", kept())
	}
	if the.wasUp {
		err = errors.Join(run(the.culvert, "uninstall", "--purge").err, cleanUp())
	}
	return code, err
}

// prepare loads images into every node, under the charts' version and as a next one.
func prepare() error {
	archives, err := filepath.Glob(filepath.Join(os.Getenv("CULVERT_IMAGES"), "*.tar"))
	if err != nil || len(archives) == 0 {
		return fmt.Errorf("no images in CULVERT_IMAGES=%q: make images ARCHES=host", os.Getenv("CULVERT_IMAGES"))
	}
	if loaded := run(the.kube, append([]string{"load"}, archives...)...); loaded.err != nil {
		return loaded.err
	}
	config := run(the.kube, "kubectl", "config", "view", "--raw")
	if config.err != nil {
		return config.err
	}
	file := filepath.Join(filepath.Dir(the.kube), "kubeconfig")
	if err := os.WriteFile(file, []byte(config.stdout), 0o600); err != nil {
		return err
	}
	return os.Setenv("KUBECONFIG", file)
}

// result is what became of a command.
type result struct {
	stdout, stderr string
	err            error // with both outputs in it
}

func run(name string, args ...string) result { return runFor(10*time.Minute, "", name, args...) }

func runFor(limit time.Duration, stdin, name string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	r := result{err: cmd.Run()}
	r.stdout, r.stderr = out.String(), errs.String()
	if r.err != nil {
		r.err = fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), r.err, r.stdout, r.stderr)
	}
	return r
}

func kubectl(args ...string) result { return run(the.kube, append([]string{"kubectl"}, args...)...) }

// culvert runs the command line, and fails the test when it fails.
func culvert(t *testing.T, args ...string) string {
	t.Helper()
	r := run(the.culvert, args...)
	if r.err != nil {
		t.Fatalf("%v\n%s", r.err, story())
	}
	return r.stdout
}

// must runs kubectl, and fails the test when it fails.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := kubectl(args...)
	if r.err != nil {
		t.Fatalf("%v\n%s", r.err, story())
	}
	return strings.TrimSpace(r.stdout)
}

func apply(t *testing.T, objects string) {
	t.Helper()
	if r := runFor(limit, objects, the.kube, "kubectl", "apply", "-f", "-"); r.err != nil {
		t.Fatalf("%v\n%s", r.err, objects)
	}
}

// eventually waits until do has no error.
func eventually(t *testing.T, what string, do func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = do(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v\n%s", what, err, story())
}

// kept is where logs are left when a test has failed.
func kept() string { return filepath.Join(os.TempDir(), "culvert-installed-logs") }

// story is what is needed to see why something did not happen: what culvert thinks of
// the mesh; nodes, pods, events and the last lines of logs.
func story() string {
	check := runFor(time.Minute, "", the.culvert, "check")
	dir, err := os.MkdirTemp(filepath.Dir(the.kube), "logs-")
	if err != nil {
		return err.Error()
	}
	return "--- culvert check\n" + check.stdout + check.stderr + runFor(limit, "", the.kube, "report", dir).stdout
}

// cleanUp removes what the tests have made on a cluster that stays.
func cleanUp() error {
	return kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false").err
}
