package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// TestMain lets the test binary stand in for culvert: it is executed again as
// process 1 of the pods.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "component" && os.Args[2] == "pod-init" {
		fmt.Fprintln(os.Stderr, Init(os.Args[3:], os.Environ()))
		os.Exit(127)
	}
	runtest.NotAgain()
	os.Exit(m.Run())
}

// spec is a pod in a namespace of its own, which runs a shell script.
func spec(t *testing.T, out *runtest.Buffer, command ...string) Spec {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root, to make namespaces: run the tests with sudo")
	}
	ns, err := netns.NewUnnamed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	etc := t.TempDir()
	if err := WriteEtc(etc, "web-1", "shop", "cluster.local", []string{"10.96.0.10"}, []string{"10.244.1.2"}); err != nil {
		t.Fatal(err)
	}
	s := spawn.New()
	go s.Run(t.Context())
	return Spec{Hostname: "web-1", Command: command, Env: []string{"PATH=/bin:/usr/bin"}, Etc: etc, NS: ns,
		Output: out, Self: "/proc/self/exe", Spawner: s}
}

func TestPod(t *testing.T) {
	t.Parallel()
	var out runtest.Buffer
	p, err := Start(spec(t, &out, "sh", "-c", "hostname; echo pid $$; cat /etc/resolv.conf /etc/hosts; readlink /proc/self/ns/net; sleep 1000 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(out.String(), "net:[") {
		time.Sleep(time.Millisecond)
	}
	for _, want := range []string{"web-1\n", "pid 1\n", "nameserver 10.96.0.10\n", "search shop.svc.cluster.local", "10.244.1.2 web-1\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the pod does not see %q:\n%s", want, out.String())
		}
	}
	var inside runtest.Buffer
	status, err := Exec(t.Context(), ExecSpec{PID: p.PID(), Command: []string{"sh", "-c", "hostname; cat /etc/resolv.conf; exit 7"},
		Env: []string{"PATH=/bin:/usr/bin"}, Stdout: &inside})
	if err != nil || status != 7 || !strings.HasPrefix(inside.String(), "web-1\nnameserver 10.96.0.10\n") {
		t.Errorf("exec: status %d, %v, %q", status, err, inside.String())
	}
	p.Terminate(0)
	if _, text := p.Exit(); text != "signal: killed" {
		t.Errorf("the pod ended with %q", text)
	}
	if host, _ := os.Hostname(); host == "web-1" {
		t.Error("the machine has the pod's name")
	}
}

// TestGrace: SIGTERM first; a process that does not care is killed.
func TestGrace(t *testing.T) {
	t.Parallel()
	var out runtest.Buffer
	polite, err := Start(spec(t, &out, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done"))
	if err != nil {
		t.Fatal(err)
	}
	for out.String() != "up\n" {
		time.Sleep(time.Millisecond)
	}
	polite.Terminate(time.Minute)
	if status, _ := polite.Exit(); status != 3 || out.String() != "up\nbye\n" {
		t.Errorf("status %d, output %q", status, out.String())
	}
	deaf, err := Start(spec(t, &out, "sleep", "1000")) // process 1 ignores what it does not handle
	if err != nil {
		t.Fatal(err)
	}
	deaf.Terminate(time.Millisecond)
	if _, text := deaf.Exit(); text != "signal: killed" {
		t.Errorf("it ended with %q", text)
	}
}

func TestNoSuchCommand(t *testing.T) {
	t.Parallel()
	var out runtest.Buffer
	for _, command := range [][]string{{"no-such-command"}, {"/etc/hosts"}} {
		if p, err := Start(spec(t, &out, command...)); err == nil {
			p.Terminate(0)
			t.Errorf("%q was started", command)
		}
	}
}

// TestForgetsMounts: a pod does not hold on to mounts of the mesh.
func TestForgetsMounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "mounted")
	ns, err := netns.New(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		netns.Delete(path)
	})
	var out runtest.Buffer
	s := spec(t, &out, "cat", "/proc/self/mountinfo")
	s.Hide = dir
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if out.String() == "" || strings.Contains(out.String(), dir) {
		t.Errorf("the pod's mounts:\n%s", out.String())
	}
	if points, err := MountsBelow(dir); err != nil || len(points) != 1 {
		t.Errorf("outside: %v, %v", points, err)
	}
}

func TestExecErrors(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Exec(ctx, ExecSpec{PID: 1 << 30, Command: []string{"true"}}); err == nil {
		t.Error("exec in a process that does not exist")
	}
	if got := Getenv([]string{"A=1", "A=2"}, "A"); got != "2" {
		t.Errorf("Getenv = %q", got)
	}
}
