package faults

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/integration/programs"
)

// soak asks for the long form of every fault, again and again for so long.
var soak = flag.Duration("soak", 0, "do every fault in its long form, over and over for so long")

// bin is the folder of the programs under test.
var bin string

func TestMain(m *testing.M) { programs.Main(m, &bin, os.Environ()) }

// meshes counts those of this process.
var meshes atomic.Int32

// up starts a mesh that ends with the test.
func up(t *testing.T, env []string) *Mesh {
	m, err := Up(t.Context(), Config{
		Culvert: filepath.Join(bin, "culvert"), Ztunnel: filepath.Join(bin, "ztunnel"),
		Name: fmt.Sprintf("faults-%d-%d", os.Getpid(), meshes.Add(1)), Dir: t.TempDir(), Env: env,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("mesh %s:\n%s", m.Name, m.Log())
		}
		if err := m.Down(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestFaults does every fault, in its short form, and holds that nothing is lost
// that need not be.
func TestFaults(t *testing.T) {
	byEnv := map[string]*Mesh{}
	var reports []*Report
	for _, f := range All {
		env := strings.Join(f.Env, " ")
		if byEnv[env] == nil {
			byEnv[env] = up(t, f.Env)
		}
		t.Run(f.Name, func(t *testing.T) { reports = append(reports, hold(t, f, byEnv[env], Short)) })
	}
	show(t, reports)
}

// TestSoak does every fault in its long form for as long as -soak says.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("the long form: make soak")
	}
	for end := time.Now().Add(*soak); time.Now().Before(end); {
		var reports []*Report
		for _, f := range All {
			t.Run(f.Name, func(t *testing.T) { reports = append(reports, hold(t, f, up(t, f.Env), Long)) })
		}
		show(t, reports)
	}
}

// maxCut is how many new connections may be under way, a few milliseconds each,
// when what they go through is killed.
const maxCut = 5

// busy is the 99th percentile of new connections beyond which a machine is too
// busy to hold a program to what it had under way when it was told to end.
const busy = 100 * time.Millisecond

// overwhelmed is the 99th percentile beyond which programs are told to end while
// connections still wait for them to be taken up: how many says nothing about the
// mesh. What hangs or is refused still does.
const overwhelmed = time.Second

// hold does a fault and fails the test when it cost what it must not.
func hold(t *testing.T, f Fault, m *Mesh, s Size) *Report {
	r, err := f.Run(t.Context(), m, s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Connections == 0 || r.Messages == 0 {
		t.Errorf("%s: there was no load: %d connections, %d messages", f.Name, r.Connections, r.Messages)
	}
	lost := r.Failed
	switch {
	case r.P99 > overwhelmed:
		cut := r.Cut(time.Hour)
		t.Logf("%s: the machine is too busy (p99 %v) to judge the %d connections that were cut", f.Name, r.P99, cut)
		lost -= cut
	case f.Breaks || r.P99 > busy:
		lost -= min(r.Cut(time.Second), maxCut*max(s.Times, s.Rollouts))
	}
	if lost > 0 || r.Broken > 0 && !f.Breaks {
		t.Errorf("%s: of %d connections %d failed, of %d streams %d broke: %s, %s", f.Name, r.Connections, r.Failed, r.Streams, r.Broken, r.Reasons(), r.Span())
		for _, f := range r.Failures[:min(len(r.Failures), 40)] {
			t.Logf("at %v, after %v: %s %s: %s", f.At, f.After, f.What, f.Step, f.Detail)
		}
	}
	return r
}

func show(t *testing.T, reports []*Report) {
	var b strings.Builder
	if err := WriteTable(&b, reports); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", b.String())
}
