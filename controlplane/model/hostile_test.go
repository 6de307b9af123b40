package model

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/kube"
)

// list returns n JSON values.
func list(n int, f func(int) any) (out []any) {
	for i := range n {
		out = append(out, f(i))
	}
	return out
}

func decoded(t *testing.T, group string, kind source.Kind, spec map[string]any) source.Object {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"namespace": "a", "name": "hostile"}, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	o, problem, known := kube.Decode(group, kind, raw)
	if problem != nil || !known {
		t.Fatal(problem, known)
	}
	return o
}

// TestEnlarged: what a small object becomes is bounded, lest anybody who may write
// one could end every replica for want of memory.
func TestEnlarged(t *testing.T) {
	t.Parallel()
	hosts := func(n int) []any { return list(n, func(i int) any { return fmt.Sprintf("h%d.example.com", i) }) }
	ports := func(n int) []any {
		return list(n, func(i int) any {
			return map[string]any{"number": i + 1, "name": fmt.Sprintf("p%d", i), "protocol": "TCP"}
		})
	}
	endpoints := func(n int) []any {
		return list(n, func(i int) any { return map[string]any{"address": fmt.Sprintf("10.1.%d.%d", i/256, i%256)} })
	}
	for _, c := range []struct {
		name     string
		spec     map[string]any
		accepted bool
	}{
		{"many endpoints", map[string]any{"resolution": "STATIC", "hosts": hosts(8), "ports": ports(8), "endpoints": endpoints(4096)}, true},
		{"many hosts and ports", map[string]any{"resolution": "STATIC", "hosts": hosts(64), "ports": ports(64), "endpoints": endpoints(64)}, true},
		{"too many endpoints, by hosts and ports", map[string]any{"resolution": "STATIC", "hosts": hosts(64), "ports": ports(64), "endpoints": endpoints(65)}, false},
		{"too many hosts, by ports", map[string]any{"resolution": "DNS", "hosts": hosts(65), "ports": ports(64)}, false},
		{"too many of any pod", map[string]any{"resolution": "STATIC", "hosts": hosts(65), "ports": ports(64), "workloadSelector": map[string]any{"labels": map[string]any{"app": "a"}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := New(compile.Mesh{})
			o := decoded(t, "networking.istio.io", source.KindServiceEntry, c.spec)
			problems := compile.Validate(o)
			if (len(problems) == 0) != c.accepted {
				t.Errorf("accepted is %v: %v", !c.accepted, problems)
			}
			n := 0
			for _, change := range m.Apply(source.Update{Set: []source.Object{o}}) {
				for _, w := range change.Output.Workloads {
					for _, s := range w.Services {
						n += len(s.Ports)
					}
				}
			}
			if n > 1<<18 || (n == 0) == c.accepted {
				t.Errorf("became %d ports of endpoints", n)
			}
		})
	}
}

// TestEnded: a pod that has ended is nobody's to act for, though it is listed still.
func TestEnded(t *testing.T) {
	t.Parallel()
	for phase, alive := range map[string]bool{"Running": true, "Pending": true, "Succeeded": false, "Failed": false} {
		m := New(compile.Mesh{})
		p := &source.Pod{Meta: source.Meta{Namespace: "a", Name: "b"}, UID: "u", Node: "n", ServiceAccount: "c", Phase: phase}
		m.Apply(source.Update{Set: []source.Object{p}})
		if _, _, _, ok := m.Pod("a", "b"); ok != alive {
			t.Errorf("%s: Pod says %v", phase, ok)
		}
		if ok := m.Runs("n", "a", "c"); ok != alive {
			t.Errorf("%s: Runs says %v", phase, ok)
		}
	}
}
