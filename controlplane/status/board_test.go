package status

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// A problem is logged when it comes and when it is gone, and not in between; only
// objects that have changed are asked about.
func TestBoardLogs(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	found := map[source.Key][]compile.Condition{}
	var asked []source.Key
	b := NewBoard(Inputs{Log: slog.New(slog.NewTextHandler(&log, nil)), ConditionsOf: func(key source.Key) []compile.Condition {
		asked = append(asked, key)
		return found[key]
	}})
	cart := source.Key{Kind: source.KindService, Namespace: "shop", Name: "cart"}
	bad := func(detail string) compile.Condition {
		return compile.Condition{Object: cart.String(), Type: compile.Accepted, Reason: reason.InvalidValue, Field: "spec.ports", Message: detail}
	}
	twice := source.Problem{Object: "Service/shop/other", Field: "spec", Reason: reason.InvalidValue, Detail: "unreadable"}
	for i, step := range []struct {
		conditions []compile.Condition
		changed    []source.Key
		problems   []source.Problem
		says       string // words of the lines that it logs, in order
	}{
		{[]compile.Condition{bad("port 70000")}, nil, nil, ""}, // nobody has said that it changed
		{[]compile.Condition{bad("port 70000")}, []source.Key{cart}, nil, "WARN 70000"},
		{[]compile.Condition{bad("port 70000")}, []source.Key{cart}, nil, ""},
		{[]compile.Condition{bad("port 70001"), {Object: cart.String(), Type: compile.Accepted, Status: true}}, []source.Key{cart}, nil, "WARN 70001 INFO 70000"},
		{nil, nil, []source.Problem{twice, twice}, "WARN unreadable"},
		{nil, []source.Key{cart}, []source.Problem{twice}, "INFO 70001"},
		{nil, []source.Key{cart}, nil, "INFO unreadable"},
	} {
		log.Reset()
		asked = nil
		found[cart] = step.conditions
		b.Changed(step.changed)
		b.Updated(step.problems)
		rest := log.String()
		for word := range strings.FieldsSeq(step.says) {
			_, after, ok := strings.Cut(rest, word)
			if !ok {
				t.Errorf("step %d: logged %q, want %s", i, log.String(), step.says)
			}
			rest = after
		}
		if got, want := strings.Count(log.String(), "\n"), len(strings.Fields(step.says))/2; got != want {
			t.Errorf("step %d: %d lines, want %d: %s", i, got, want, log.String())
		}
		if len(asked) != len(step.changed) {
			t.Errorf("step %d: asked about %v", i, asked)
		}
	}
}
