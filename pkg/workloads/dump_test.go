package workloads

import (
	"encoding/json"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
)

// load fills a store from testdata/mesh.yaml.
func load(t *testing.T) *Store {
	t.Helper()
	w, v, p, err := localxds.ParseFile("testdata/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	s.Apply(Update{Workloads: w, Services: v, Policies: p})
	return s
}

// TestDump compares with the whole text, which also shows that the order is fixed.
func TestDump(t *testing.T) {
	t.Parallel()
	got, err := json.MarshalIndent(load(t).Dump(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.File(t, "testdata/dump.json", string(got)+"\n")
}

// istioctl is what the command line tool of Istio reads of a dump, with its types.
type istioctl struct {
	Workloads []struct {
		UID         string
		WorkloadIPs []string
		Waypoint    *struct{ Destination string }
		Protocol    string
		Namespace   string
		Node        string
		Status      string
		Locality    struct{ Region, Zone, Subzone string }
		Capacity    uint32

		ApplicationTunnel struct {
			Protocol string
			Port     *uint16
		}
		AuthorizationPolicies []string
	}
	Services []struct {
		Hostname     string
		VIPs         []string
		Ports        map[string]int
		Waypoint     *struct{ Destination string }
		LoadBalancer *struct {
			Mode               string
			RoutingPreferences []string
			HealthPolicy       string
		}
		Endpoints map[string]*struct {
			WorkloadUID string
			Service     string
			Port        map[uint16]uint16
		}
		IPFamilies string
		Canonical  bool
	}
	Policies []struct {
		Name, Namespace, Scope, Action string
		Rules                          [][][]struct {
			Principals      []map[string]string
			SourceIPs       []string
			ServiceAccounts []struct{ Namespace, ServiceAccount string }
		}
	}
}

func TestDumpAsIstioctlReadsIt(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(load(t).Dump())
	if err != nil {
		t.Fatal(err)
	}
	var d istioctl
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	w, s, p := d.Workloads[0], d.Services[0], d.Policies[0]
	if w.UID != "Kubernetes//Pod/shop/cart-1" || w.Status != "Healthy" || w.Protocol != "HBONE" || w.Waypoint.Destination != "infra/wp.infra" {
		t.Errorf("workload = %+v", w)
	}
	if e := s.Endpoints[w.UID]; e == nil || e.WorkloadUID != w.UID || e.Port[80] != 8080 || s.VIPs[0] != "net-1/10.96.0.7" {
		t.Errorf("service = %+v", s)
	}
	if m := p.Rules[0][0][0]; p.Scope != "WorkloadSelector" || m.Principals[0]["Exact"] != "td/ns/shop/sa/front" || m.SourceIPs[0] != "10.0.0.0/8" {
		t.Errorf("policy = %+v", p)
	}
}
