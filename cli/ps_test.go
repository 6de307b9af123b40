package main

import (
	"reflect"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop"
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
