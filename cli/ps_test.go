package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/handover"
)

// TestProxyRows: people see a ztunnel that drains, and one that knows old things.
func TestProxyRows(t *testing.T) {
	now := time.Unix(1e9, 0)
	proxy := func(pid int, s handover.Status) laptop.ProxyStatus {
		return laptop.ProxyStatus{Node: "n", ClientStatus: handover.ClientStatus{Status: s, PID: pid}}
	}
	st := &laptop.Status{Proxies: []laptop.ProxyStatus{
		proxy(1, handover.Status{State: handover.Serving, Open: 9, Contact: now}),
		proxy(2, handover.Status{State: handover.Draining, Open: 3, Until: now.Add(59 * time.Minute), Contact: now}),
		proxy(3, handover.Status{State: handover.Serving, Away: true, Restored: true, Contact: now.Add(-14 * time.Second)}),
		proxy(4, handover.Status{State: handover.Starting, Away: true}),
	}}
	want := [][]string{
		{"ztunnel-n", "2", "draining", "3", "59m", "current"},
		{"ztunnel-n", "3", "serving", "0", "-", "14s-old,from-predecessor"},
		{"ztunnel-n", "4", "starting", "0", "-", "nothing-yet"},
	}
	if got := proxyRows(st, now); !reflect.DeepEqual(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
}

// TestOnly: a namespace's part of a mesh has what belongs to no namespace as well.
func TestOnly(t *testing.T) {
	t.Parallel()
	st := &laptop.Status{
		Nodes:    []laptop.NodeStatus{{Name: "n1", Addrs: []string{"10.0.0.1"}, Pods: 2}, {Name: "n2"}},
		Pods:     []laptop.PodStatus{{Namespace: "a", Name: "x", Addrs: []string{"-"}}, {Namespace: "b", Name: "y", Addrs: []string{"-"}}},
		Services: []laptop.ServiceStatus{{Namespace: "a", Name: "s"}, {Namespace: "b", Name: "t"}},
		Config:   laptop.ConfigStatus{Problems: []folder.Problem{{Object: "HTTPRoute/b/r"}, {Object: "GatewayClass/c"}, {File: "f.yaml"}}},
		NotReady: []string{"pod b/y is not ready: starts"},
	}
	only(st, nil)
	if len(st.Pods) != 2 || st.Ready {
		t.Errorf("no namespace is named: %+v", st)
	}
	only(st, []string{"a"})
	if len(st.Pods) != 1 || len(st.Services) != 1 || len(st.Config.Problems) != 2 || len(st.NotReady) != 0 || !st.Ready {
		t.Errorf("of namespace a: %+v", st)
	}
	var out strings.Builder
	if err := printStatus(&out, st); err != nil {
		t.Fatal(err)
	}
	want := "NODE  ADDRESS   PODS\nn1    10.0.0.1  2\nn2    -         0\n"
	if d := cmp.Diff(want, out.String()[:len(want)]); d != "" {
		t.Error(d)
	}
}
