package why

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/ztunnel/route"
)

func TestMain(m *testing.M) { runtest.Main(m) }

// TestCases runs testdata/*.txtar: a mesh in the form of LOCAL_XDS_PATH, questions
// and the wanted answers. A workload whose nodeName is "n1" is served by the
// ztunnel that is asked, if it takes HBONE.
//
//	shop/a -> 10.96.0.7:80                  pod a opens a connection
//	waypoint shop/w -> 10.96.0.7:80         a waypoint does
//	shop/b <- 10.0.0.1 shop/a 10.0.0.2:80   a tunnel comes from that address with that identity, "-" for plain TCP
func TestCases(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		n := newNode(t, c.Section(t, "mesh.yaml"))
		var got strings.Builder
		for line := range strings.Lines(string(c.Section(t, "questions"))) {
			line = strings.TrimSpace(line)
			fmt.Fprintf(&got, "== %s\n%s", line, render(n.Explain(t.Context(), parse(t, line))))
		}
		c.Want(t, "want", got.String())
	})
}

func newNode(t *testing.T, text []byte) *Node {
	t.Helper()
	known, services, policies, err := localxds.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	here := map[mesh.PodInfo]bool{}
	for _, w := range known {
		if w.Node == "n1" && w.Protocol == mesh.HBONE {
			here[mesh.PodInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}] = w.Name != "late"
		}
	}
	store := workloads.New()
	store.Apply(workloads.Update{Workloads: known, Services: services, Policies: policies})
	here[mesh.PodInfo{Name: "stray", Namespace: "shop", ServiceAccount: "stray"}] = true
	return &Node{
		Name: "n1", Mesh: store,
		Pod: func(i mesh.PodInfo) (Proxy, bool) {
			up, ok := here[i]
			if !ok {
				return nil, false
			}
			return served{store, i}, up
		},
		Certificate: func(id mesh.Identity) (string, time.Time) {
			if id.ServiceAccount == "x" {
				return "Unavailable: the CA does not answer", time.Time{}
			}
			return "Available", time.Time{}
		},
	}
}

// served is a pod's proxy that has only the decisions.
type served struct {
	store *workloads.Store
	info  mesh.PodInfo
}

func (s served) Self() *mesh.Workload { return s.store.WorkloadByInfo(s.info, "n1") }

func (s served) Choose(_ context.Context, f route.Flow) (route.Route, error) {
	return route.Choose(s.store, f)
}

func (s served) Deliver(_ context.Context, a route.Arrival) (route.Delivery, error) {
	return route.Deliver(s.store, a)
}

func (s served) Explain(self *mesh.Workload, c authz.Connection) authz.Explanation {
	policies, missing := s.store.PoliciesFor(self)
	return authz.Explain(policies, missing, c)
}

func parse(t *testing.T, line string) (q Question) {
	t.Helper()
	f := strings.Fields(line)
	if f[0] == "waypoint" {
		q.Waypoint, f = true, f[1:]
	}
	ns, name, _ := strings.Cut(f[0], "/")
	q.Pod = Pod{Namespace: ns, Name: name, ServiceAccount: strings.TrimRight(name, "-0123456789")}
	if f[1] == "->" {
		q.Dst = netip.MustParseAddrPort(f[2])
		return q
	}
	q.Arriving = &Arriving{Source: netip.MustParseAddr(f[2]), Dst: netip.MustParseAddrPort(f[4])}
	if f[3] != "-" {
		ns, sa, _ := strings.Cut(f[3], "/")
		q.Arriving.Identity = mesh.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}.String()
		q.Arriving.Authority = f[4]
		q.Arriving.Dst = netip.AddrPortFrom(q.Arriving.Dst.Addr(), mesh.PortHBONE)
	}
	return q
}

func render(a Answer) string {
	var b strings.Builder
	for _, s := range a.Steps {
		fmt.Fprintf(&b, "%s: %s\n", strings.TrimSpace(s.What+" "+s.Subject), s.Result)
		for _, d := range s.Detail {
			fmt.Fprintf(&b, "    %s\n", d)
		}
	}
	for _, w := range a.Ways {
		fmt.Fprintf(&b, "way %.2f: %s", w.Share, w.Text)
		if w.Workload != nil {
			fmt.Fprintf(&b, " (%s on %s)", w.Workload.Name, w.Workload.Node)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "allowed %v, reason %q, policy %q\n", a.Allowed, a.Reason, a.Policy)
	for _, c := range a.Change {
		fmt.Fprintf(&b, "- %s\n", c)
	}
	return b.String()
}

// TestAsJSON: what travels between the programs comes back as it was.
func TestAsJSON(t *testing.T) {
	t.Parallel()
	for _, q := range []Question{
		parse(t, "shop/a -> 10.96.0.7:80"), parse(t, "shop/b <- 10.0.0.1 shop/a 10.0.0.2:80"), parse(t, "waypoint shop/w -> [fd00::1]:80"),
	} {
		text, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		var again Question
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if more, _ := json.Marshal(again); string(more) != string(text) {
			t.Errorf("%s came back as %s", text, more)
		}
	}
}
