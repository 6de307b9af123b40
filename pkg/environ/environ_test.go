package environ

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestValues(t *testing.T) {
	t.Parallel()
	e := New([]string{"A=x", "A=y=z", "EMPTY=", "T=true", "F=false", "D=1h30m", "DAYS=2d", "N=7", "P=0", "H_a=1", "H_=2"})
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"the later pair", e.Text("A", "fallback"), "y=z"},
		{"text set to nothing", e.Text("EMPTY", "fallback"), "fallback"},
		{"required", e.Required("A"), "y=z"},
		{"true", e.Bool("T", false), true},
		{"false", e.Bool("F", true), false},
		{"unset boolean", e.Bool("X", true), true},
		{"duration", e.Duration("D", 0), 90 * time.Minute},
		{"days", e.Duration("DAYS", 0), 48 * time.Hour},
		{"unset duration", e.Duration("EMPTY", time.Second), time.Second},
		{"number", e.Integer("N", 1, 7, 7), uint64(7)},
		{"unset number", e.Integer("X", 1, 7, 7), uint64(1)},
		{"port", e.Port("P", 80), uint16(0)},
		{"unset port", e.Port("X", 80), uint16(80)},
		{"prefix", e.Prefixed("H_"), map[string]string{"a": "1"}},
		{"drain time", e.DrainTime(time.Second), time.Second},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.what, diff)
		}
	}
	if _, set := e.Lookup("EMPTY"); !set {
		t.Error("a variable set to nothing is set")
	}
	if e.Refuse("A", false); e.Err() != nil {
		t.Error(e.Err())
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	e := New([]string{"B=yes", "D=5", "D2=-1s", "D3=99999999d", "N=8", "N2=-1", "P=65536", "S=on",
		"TERMINATION_GRACE_PERIOD_SECONDS=soon"})
	e.Required("MISSING")
	if e.Bool("B", true) != true || e.Duration("D", time.Hour) != time.Hour || e.Integer("N", 1, 2, 7) != 1 {
		t.Error("a mistake has another value than the fallback's")
	}
	e.Duration("D2", 0)
	e.Duration("D3", 0)
	e.Integer("N2", 0, 0, 9)
	e.Port("P", 1)
	e.Refuse("S", true)
	e.DrainTime(0)
	var names []string
	for line := range strings.Lines(e.Err().Error()) {
		name, _, _ := strings.Cut(line, ": ")
		names = append(names, name)
	}
	want := []string{"MISSING", "B", "D", "N", "D2", "D3", "N2", "P", "S", "TERMINATION_GRACE_PERIOD_SECONDS"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestDrainTime(t *testing.T) {
	t.Parallel()
	for grace, want := range map[string]time.Duration{
		"60": 55 * time.Second, "11": 6 * time.Second, "10": 9 * time.Second, "1": time.Second, "0": time.Second, "": 3 * time.Second,
	} {
		if got := New([]string{"TERMINATION_GRACE_PERIOD_SECONDS=" + grace}).DrainTime(3 * time.Second); got != want {
			t.Errorf("%q: %s, want %s", grace, got, want)
		}
	}
}
