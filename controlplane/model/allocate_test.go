package model_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

func entry(name string, age int, hosts ...string) *source.ServiceEntry {
	return &source.ServiceEntry{
		Meta: source.Meta{Namespace: "out", Name: name, Created: time.Unix(int64(1_000_000-age), 0)},
		Spec: &networking.ServiceEntry{Hosts: hosts, Resolution: networking.ServiceEntry_DNS,
			Ports: []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}}},
	}
}

// allocation is every host's IPv4 address.
func allocation(t *testing.T, m *model.Model) map[string]string {
	t.Helper()
	out, holder := map[string]string{}, map[string]string{}
	for _, r := range m.Results() {
		for _, a := range r.Addresses {
			if other, taken := holder[a.Value]; taken {
				t.Errorf("%s and %s both have %s", other, a.Host, a.Value)
			}
			holder[a.Value] = a.Host
			if _, v6 := out[a.Host]; !v6 {
				out[a.Host] = a.Value
			}
		}
	}
	return out
}

// TestAllocation: every host has an address of its own, the same whatever the order
// in which entries come, and keeps it once it is recorded.
func TestAllocation(t *testing.T) {
	t.Parallel()
	var entries []source.Object
	for i := range 500 {
		entries = append(entries, entry(fmt.Sprint("e", i), i, fmt.Sprintf("a%d.example", i), fmt.Sprintf("b%d.example", i)))
	}
	m := model.New(compile.Mesh{})
	m.Apply(source.Update{Set: entries})
	first := allocation(t, m)
	if len(first) != 1000 {
		t.Fatalf("%d hosts have addresses", len(first))
	}
	rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	other := model.New(compile.Mesh{})
	for len(entries) > 0 {
		n := min(100, len(entries))
		other.Apply(source.Update{Set: entries[:n]})
		entries = entries[n:]
	}
	for host, addr := range allocation(t, other) {
		if first[host] != addr {
			t.Errorf("%s has %s, and %s when entries come in another order", host, first[host], addr)
		}
	}
	recorded := entry("young", 0, "new.example")
	recorded.Addresses = []source.HostAddress{{Host: "new.example", Value: first["a400.example"]}}
	m.Apply(source.Update{Set: []source.Object{recorded}})
	if now := allocation(t, m); now["new.example"] != first["a400.example"] || now["a400.example"] == first["a400.example"] {
		t.Errorf("recorded %s, the older has %s", now["new.example"], now["a400.example"])
	}
}
