package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// absent is a control plane that is not there, and what is held without it.
type absent struct {
	away time.Duration
	held mesh.Identity
}

func (a *absent) Away() time.Duration        { return a.away }
func (a *absent) Held(id mesh.Identity) bool { return id == a.held }

var dbIdentity = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "db"}

// unknownPod is a pod that the store does not know.
func unknownPod(t *testing.T, a *absent) (*Pod, *workloads.Store) {
	t.Helper()
	ns, err := netnstest.New(t).Dup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	store := workloads.New()
	node := &Node{Mesh: store, Absence: a, Log: slog.New(slog.DiscardHandler),
		Settings: Settings{NodeName: "n", Network: "net", Cluster: "c", TrustDomain: "cluster.local", RootNamespace: "root"}}
	return &Pod{node: node, info: dbInfo, ns: ns}, store
}

// TestUnknownPod holds what a pod is that the control plane has not told: awaited
// while it may, made up when it cannot, refused at once without a certificate.
func TestUnknownPod(t *testing.T) {
	t.Parallel()
	a := &absent{away: time.Minute, held: dbIdentity}
	p, store := unknownPod(t, a)
	w, err := p.workload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w.Identity() != dbIdentity || w.Name != "db-0" || w.Node != "n" || w.Network != "net" || w.Protocol != mesh.HBONE || w.UID != "c//Pod/shop/db-0" {
		t.Errorf("made up %+v", w)
	}
	if again, err := p.workload(t.Context()); again != w || err != nil {
		t.Errorf("made up anew: %v", err)
	}
	a.held = friend
	if _, err := p.workload(t.Context()); reason.Of(err) != reason.NoCertificate {
		t.Errorf("without a certificate: %v", err)
	}
	told := &mesh.Workload{UID: "c//Pod/shop/db-0", Name: "db-0", Namespace: "shop", ServiceAccount: "db", Node: "n"}
	store.Apply(workloads.Update{Workloads: []*mesh.Workload{told}})
	if got, err := p.workload(t.Context()); got != told || err != nil {
		t.Errorf("what the control plane tells does not count: %v", err)
	}
}

// TestAwayCountsAfterAWhile: a process that has just started connects first.
func TestAwayCountsAfterAWhile(t *testing.T) {
	ns, err := netnstest.New(t).Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := &Pod{node: &Node{Mesh: workloads.New(), Absence: sinceNow{began}, Log: slog.New(slog.DiscardHandler),
			Settings: Settings{TrustDomain: "cluster.local"}}, info: dbInfo, ns: ns}
		_, err := p.workload(t.Context())
		if took := time.Since(began); reason.Of(err) != reason.NoCertificate || took < awayAfter || took > awayAfter+2*awayCheck {
			t.Errorf("%v after %s", err, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.node.Absence = &absent{}
		if _, err := p.workload(ctx); reason.Of(err) != reason.UnknownSource {
			t.Errorf("ended: %v", err)
		}
	})
}

// sinceNow is a control plane that has been away since a moment.
type sinceNow struct{ t time.Time }

func (s sinceNow) Away() time.Duration     { return time.Since(s.t) }
func (s sinceNow) Held(mesh.Identity) bool { return false }

// TestJudge holds that a workload of which it is not known which policies select it
// is as closed as the most closed of the possibilities.
func TestJudge(t *testing.T) {
	t.Parallel()
	policy := func(name, ns string, scope mesh.Scope, action mesh.Action, who ...mesh.Identity) *mesh.Policy {
		p := &mesh.Policy{Name: mesh.PolicyName{Namespace: ns, Name: name}, Scope: scope, Action: action}
		for _, id := range who {
			match := mesh.Match{ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount}}}
			p.Rules = append(p.Rules, mesh.Rule{Clauses: []mesh.Clause{{Matches: []mesh.Match{match}}}})
		}
		return p
	}
	const selects, general, elsewhere = mesh.ScopeWorkloadSelector, mesh.ScopeNamespace, "other"
	for _, c := range []struct {
		what             string
		policies         []*mesh.Policy
		friend, stranger bool
	}{
		{"no policy", nil, true, true},
		{"a general one allows friends", []*mesh.Policy{policy("a", "shop", general, mesh.Allow, friend)}, true, false},
		{"one may allow friends only", []*mesh.Policy{policy("a", "shop", selects, mesh.Allow, friend)}, true, false},
		{"two may allow, each somebody else", []*mesh.Policy{policy("a", "shop", selects, mesh.Allow, friend), policy("b", "shop", selects, mesh.Allow, stranger)}, false, false},
		{"one certainly allows friends, one may allow strangers", []*mesh.Policy{policy("a", "shop", general, mesh.Allow, friend), policy("b", "shop", selects, mesh.Allow, stranger)}, true, false},
		{"one may deny strangers", []*mesh.Policy{policy("a", "shop", selects, mesh.Deny, stranger)}, true, false},
		{"what may select in another namespace", []*mesh.Policy{policy("a", elsewhere, selects, mesh.Deny, friend, stranger)}, true, true},
		{"one of the mesh's may deny strangers", []*mesh.Policy{policy("a", "root", selects, mesh.Deny, stranger)}, true, false},
		{"one of the mesh's may allow friends only", []*mesh.Policy{policy("a", "root", selects, mesh.Allow, friend)}, true, false},
		{"a general one denies strangers", []*mesh.Policy{policy("a", "shop", general, mesh.Deny, stranger)}, true, false},
	} {
		p, store := unknownPod(t, &absent{away: time.Minute, held: dbIdentity})
		store.Apply(workloads.Update{Policies: c.policies})
		self, err := p.workload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range map[mesh.Identity]bool{friend: c.friend, stranger: c.stranger} {
			conn := authz.Connection{Source: netip.MustParseAddr("10.0.0.9"), Identity: id, Destination: netip.MustParseAddrPort("10.0.0.7:80")}
			if v := p.evaluate(self, conn); v.Allow != want {
				t.Errorf("%s: %s allowed %v, want %v", c.what, id.ServiceAccount, v.Allow, want)
			}
		}
	}
}

// TestJudgeAgain: what a policy that comes later would refuse ends also where the
// workload is still unknown.
func TestJudgeAgain(t *testing.T) {
	t.Parallel()
	p, store := unknownPod(t, &absent{away: time.Minute, held: dbIdentity})
	self, err := p.workload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := func(id mesh.Identity) *live {
		l := p.conns.track(t.Context(), inbound)
		conn := authz.Connection{Source: netip.MustParseAddr("10.0.0.9"), Identity: id, Destination: netip.MustParseAddrPort("10.0.0.7:80")}
		if err := p.authorize(t.Context(), self, l, conn); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := open(friend), open(stranger)
	p.recheck(time.Now())
	if a.err() != nil || b.err() != nil {
		t.Errorf("ended without a policy: %v, %v", a.err(), b.err())
	}
	store.Apply(workloads.Update{Policies: []*mesh.Policy{only("friends", mesh.ScopeWorkloadSelector, friend)}})
	p.recheck(time.Now())
	if a.err() != nil || reason.Of(b.err()) != reason.PolicyChanged {
		t.Errorf("the friend's: %v, the stranger's: %v", a.err(), b.err())
	}
}
