package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

func TestParseBytes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{"1000": 1000, "64KiB": 64 << 10, "10MiB": 10 << 20, "1GiB": 1 << 30} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "x", "-1", "0", "1GB", "1 MiB", "1.5MiB"} {
		if n, err := parseBytes(bad); err == nil {
			t.Errorf("parseBytes(%q) = %d", bad, n)
		}
	}
}

func TestFindPod(t *testing.T) {
	t.Parallel()
	st := &laptop.Status{Pods: []laptop.PodStatus{
		{Namespace: "shop", Name: "cart-abc-1", Deployment: "cart", PID: 1},
		{Namespace: "shop", Name: "cart-abc-2", Deployment: "cart", PID: 2, Ready: true},
		{Namespace: "shop", Name: "tool", PID: 3},
		{Namespace: "other", Name: "tool", PID: 4},
		{Namespace: "other", Name: "dead"},
		{Namespace: "other", Name: "old", PID: 5, Stopping: true},
	}}
	for want, pid := range map[string]int{"cart": 2, "shop/cart": 2, "cart-abc-1": 1, "shop/tool": 3, "other/tool": 4, "cart-abc-2": 2} {
		if p, err := findPod(st, want); err != nil || p.PID != pid {
			t.Errorf("findPod(%q) = %v, %v; want process %d", want, p, err, pid)
		}
	}
	for _, bad := range []string{"tool", "nobody", "dead", "old", "cart-abc", "elsewhere/tool"} {
		if p, err := findPod(st, bad); err == nil {
			t.Errorf("findPod(%q) = %v", bad, p)
		}
	}
}

// TestReport: an error is told with its hint; a status that a command in a pod
// had is passed on in silence.
func TestReport(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if got := report(&out, laptop.WithHint(errors.New("no"), "try yes")); got != 1 || out.String() != "culvert: no\nhint: try yes\n" {
		t.Errorf("status %d, %q", got, out.String())
	}
	out.Reset()
	root := command(&env{stdout: &out, stderr: &out})
	for _, args := range [][]string{{"nonsense"}, {"log", "--failed"}, {"log", "--failed", "-o", "json"}, {"ps", "--nonsense"}} {
		root.SetArgs(args)
		out.Reset()
		if got := report(&out, root.Execute()); got != 1 || !strings.Contains(out.String(), "\nhint: culvert ") {
			t.Errorf("culvert %s: status %d, %q", args, got, out.String())
		}
	}
	out.Reset()
	if got := report(&out, exitStatus(7)); got != 7 || out.Len() != 0 {
		t.Errorf("status %d, %q", got, out.String())
	}
}

// TestVerbs: every verb says what it wants, and reading verbs take -o and --name.
func TestVerbs(t *testing.T) {
	t.Parallel()
	root := command(&env{environ: []string{"CULVERT_NAME=mine"}})
	for _, c := range root.Commands() {
		if c.Short == "" {
			t.Errorf("%s has no description", c.Name())
		}
	}
	for _, verb := range []string{"exec", "ps", "certs", "log", "status"} {
		c, _, err := root.Find([]string{verb})
		if err != nil {
			t.Fatal(err)
		}
		if c.Flags().Lookup("output") == nil || c.Flags().Lookup("name").DefValue != "mine" {
			t.Errorf("%s lacks -o or --name", verb)
		}
	}
	up, _, err := root.Find([]string{"up"})
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Args(up, nil); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("up without a folder: %v", err)
	}
}

// TestSomeone: what nobody can mean is told from pods that were quiet.
func TestSomeone(t *testing.T) {
	t.Parallel()
	st := &laptop.Status{Pods: []laptop.PodStatus{{Namespace: "shop", Name: "cart-1"}}}
	for want, ok := range map[string]bool{"": true, "cart": true, "shop/": true, "nosuch": false} {
		if got := (logFilter{pod: want}).someone(st); got != ok {
			t.Errorf("--pod %q: %v", want, got)
		}
	}
	if !(logFilter{}).someone(&laptop.Status{}) {
		t.Error("a mesh without pods has no one, and nobody is asked for")
	}
}
