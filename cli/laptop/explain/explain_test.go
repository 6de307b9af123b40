package explain

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/ztunnel/why"
)

// told answers questions from a table: by node, and by the pod that is asked about.
type told struct {
	answers map[string]why.Answer
	deaf    []string // "namespace/name:port" where nothing listens
	asked   []string
}

func (m *told) Ask(_ context.Context, node string, q why.Question) (why.Answer, error) {
	key := node + " " + q.Pod.String()
	if q.Arriving != nil {
		key += " <- " + q.Arriving.Identity
	}
	m.asked = append(m.asked, key)
	a, ok := m.answers[key]
	if !ok {
		return a, errors.New("HTTP status 404")
	}
	a.Node = node
	return a, nil
}

func (m *told) Listens(p why.Pod, port uint16) (bool, bool) {
	return !slices.Contains(m.deaf, p.String()), true
}

func (m *told) Held(_ context.Context, p why.Pod, identity string) string {
	m.asked = append(m.asked, "certificate of "+p.String())
	return "Available"
}

const front = "spiffe://td/ns/shop/sa/front"

func way(node, pod string, share float64) why.Way {
	id := mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: pod}
	return why.Way{
		Share: share, Kind: "tunnel", Next: netip.MustParseAddrPort("10.0.0.2:15008"), Authority: "10.0.0.2:80", Identity: front,
		Workload: &why.Workload{Namespace: "shop", Name: pod, ServiceAccount: pod, Node: node, Identity: id.String(), HBONE: true}, Text: "tunnel",
	}
}

func leaving(ways ...why.Way) why.Answer {
	return why.Answer{Captured: true, Allowed: true, Ways: ways, Steps: []why.Step{{What: "pod", Result: "in the mesh"}}}
}

var (
	letIn  = why.Answer{Captured: true, Allowed: true, Policy: "shop/yes", Program: netip.MustParseAddrPort("10.0.0.2:80"), Change: []string{"less of shop/yes"}}
	kept   = why.Answer{Captured: true, Reason: "explicitly denied by policy", Error: "connection closed: shop/no", Policy: "shop/no", Change: []string{"less of shop/no"}}
	nobody = why.Answer{Reason: "no healthy upstream", Error: "no healthy upstream: x", Change: []string{"a pod"}}
)

func TestFollow(t *testing.T) {
	t.Parallel()
	start := Start{Pod: why.Pod{Namespace: "shop", Name: "front", ServiceAccount: "front"}, Node: "n1", Dst: netip.MustParseAddrPort("10.96.0.7:80")}
	toWaypoint := way("n2", "wp", 1)
	toWaypoint.Waypoint = true
	outside := why.Way{Share: 1, Kind: "passthrough", Next: netip.MustParseAddrPort("192.0.2.1:443"), Text: "passthrough to 192.0.2.1:443"}
	for _, c := range []struct {
		what    string
		answers map[string]why.Answer
		deaf    []string
		verdict string
		hops    int
		policy  string
		reason  string
		change  string
	}{
		{"let in", map[string]why.Answer{"n1 shop/front": leaving(way("n2", "b", 1)), "n2 shop/b <- " + front: letIn}, nil, Allowed, 2, "shop/yes", "", "less of shop/yes"},
		{"kept out", map[string]why.Answer{"n1 shop/front": leaving(way("n2", "b", 1)), "n2 shop/b <- " + front: kept}, nil, Denied, 2, "shop/no", "explicitly denied by policy", "less of shop/no"},
		{"nowhere to go", map[string]why.Answer{"n1 shop/front": nobody}, nil, Unreachable, 1, "", "no healthy upstream", "a pod"},
		{"one of two is kept out", map[string]why.Answer{"n1 shop/front": leaving(way("n2", "b", .75), way("n3", "c", .25)), "n2 shop/b <- " + front: letIn, "n3 shop/c <- " + front: kept},
			nil, InPart, 3, "shop/no", "explicitly denied by policy", "less of shop/yes"},
		{"nothing listens", map[string]why.Answer{"n1 shop/front": leaving(way("n2", "b", 1)), "n2 shop/b <- " + front: letIn}, []string{"shop/b"}, Unreachable, 2, "shop/yes", "connection refused", "a program in shop/b that listens on port 80"},
		{"a foreign ztunnel", map[string]why.Answer{"n1 shop/front": leaving(way("n2", "b", 1))}, nil, Unknown, 2, "", "", ""},
		{"the waypoint may, as itself", map[string]why.Answer{"n1 shop/front": leaving(toWaypoint), "n2 shop/wp": leaving(way("n3", "b", 1)), "n3 shop/b <- " + front: letIn}, nil, Allowed, 3, "shop/yes", "", "less of shop/yes"},
		{"the waypoint may not", map[string]why.Answer{"n1 shop/front": leaving(toWaypoint), "n2 shop/wp": leaving(way("n3", "b", 1)), "n3 shop/b <- " + front: kept}, nil, Denied, 3, "shop/no", "explicitly denied by policy", "less of shop/no"},
		{"the waypoint has no endpoint", map[string]why.Answer{"n1 shop/front": leaving(toWaypoint), "n2 shop/wp": nobody}, nil, Unreachable, 2, "", "no healthy upstream", "a pod"},
		{"outside", map[string]why.Answer{"n1 shop/front": leaving(outside)}, nil, Allowed, 2, "", "", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			m := &told{answers: c.answers, deaf: c.deaf}
			x, err := Follow(t.Context(), m, start)
			if err != nil {
				t.Fatal(err)
			}
			if x.Verdict != c.verdict || len(x.Hops) != c.hops || x.Policy != c.policy || x.Reason != c.reason || !strings.Contains(strings.Join(x.Change, "|"), c.change) {
				t.Errorf("asked %q, got %+v", m.asked, x)
			}
			if x.L7 != "" && x.Hops[1].Steps[0].Result != "Available" {
				t.Errorf("the waypoint's certificate is not told: %+v", x.Hops[1])
			}
			if x.Verdict != Unknown && (x.Verdict == Allowed) != (x.Error == "") {
				t.Errorf("verdict %s with error %q", x.Verdict, x.Error)
			}
		})
	}
	if _, err := Follow(t.Context(), &told{}, start); err == nil {
		t.Error("the source's ztunnel did not answer, and that is no error")
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	m := &told{answers: map[string]why.Answer{
		"n1 shop/front":         leaving(way("n2", "b", .5), way("n3", "c", .5)),
		"n2 shop/b <- " + front: letIn, "n3 shop/c <- " + front: letIn,
	}}
	x, err := Follow(t.Context(), m, Start{Pod: why.Pod{Namespace: "shop", Name: "front"}, Node: "n1", Dst: netip.MustParseAddrPort("10.96.0.7:80")})
	if err != nil {
		t.Fatal(err)
	}
	x.To = "b:80"
	x.Lookup = &Lookup{Host: "b", Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00::7")}}
	var out strings.Builder
	if err := x.Print(&out); err != nil {
		t.Fatal(err)
	}
	want := `shop/front → b:80: allowed

looking up b in the pod
  10.96.0.7  (taken here)
  fd00::7

leaving shop/front, on n1: allowed
  pod: in the mesh

arriving at shop/b, on n2, 50 % of the connections: allowed
  program port 80: listens

arriving at shop/c, on n3, 50 % of the connections: allowed, for the same reasons

what would change the answer
  - less of shop/yes
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
}
