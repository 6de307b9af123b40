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
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// guarded is a pod with policies, without sockets.
type guarded struct {
	*Pod
	store *workloads.Store
}

var (
	friend   = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "friend"}
	stranger = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "stranger"}
)

func newGuarded(t *testing.T) guarded {
	store := workloads.New()
	node := &Node{Mesh: store, Log: slog.New(slog.DiscardHandler)}
	p := &Pod{node: node, info: mesh.PodInfo{Name: "db-0", Namespace: "shop", ServiceAccount: "db"}}
	node.add(p)
	g := guarded{p, store}
	g.apply(nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); node.Recheck(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

// apply gives the pod's workload the policies that it names, and sends policies.
func (g guarded) apply(named []mesh.PolicyName, sent ...*mesh.Policy) {
	g.store.Apply(workloads.Update{Policies: sent, Workloads: []*mesh.Workload{{
		UID: "Kubernetes//Pod/shop/db-0", Name: "db-0", Namespace: "shop", ServiceAccount: "db", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Policies: named,
	}}})
}

func (g guarded) self(t *testing.T) *mesh.Workload {
	w, err := g.workload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (g guarded) open(t *testing.T, id mesh.Identity) (*live, error) {
	l := g.conns.track(context.Background(), inbound)
	return l, g.authorize(t.Context(), g.self(t), l, authz.Connection{
		Source: netip.MustParseAddr("10.0.0.1"), Identity: id, Destination: netip.MustParseAddrPort("10.0.0.7:5432"),
	})
}

// only allows one service account.
func only(name string, scope mesh.Scope, id mesh.Identity) *mesh.Policy {
	return &mesh.Policy{
		Name: mesh.PolicyName{Namespace: "shop", Name: name}, Scope: scope, Action: mesh.Allow,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			Principals: []mesh.StringMatch{{Kind: mesh.MatchExact, Value: id.Principal()}}}}}}}},
	}
}

// wantEnds holds which of the two connections has been ended after a time.
func wantEnds(t *testing.T, after time.Duration, what string, a *live, aEnds bool, b *live, bEnds bool) {
	t.Helper()
	time.Sleep(after)
	synctest.Wait()
	if got := a.err() != nil; got != aEnds {
		t.Errorf("%s: the friend's connection ended: %v (%v)", what, got, a.err())
	}
	if got := b.err() != nil; got != bEnds {
		t.Errorf("%s: the stranger's connection ended: %v (%v)", what, got, b.err())
	}
}

func openBoth(t *testing.T, g guarded) (a, b *live) {
	a, err := g.open(t, friend)
	if err != nil {
		t.Fatal(err)
	}
	b, err = g.open(t, stranger)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

const soon = 100 * time.Millisecond

func TestPolicyEndsOpenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		a, b := openBoth(t, g)
		wantEnds(t, soon, "without policies", a, false, b, false)
		g.apply(nil, only("friends", mesh.ScopeNamespace, friend))
		wantEnds(t, soon, "with a policy for the namespace", a, false, b, true)
		if got := reason.Of(b.err()); got != reason.PolicyChanged {
			t.Errorf("reason %q", got)
		}
	})
}

func TestPolicyNamedByWorkloadEndsOpenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		p := only("friends", mesh.ScopeWorkloadSelector, friend)
		g.apply(nil, p)
		a, b := openBoth(t, g)
		wantEnds(t, soon, "with a policy that selects others", a, false, b, false)
		g.apply([]mesh.PolicyName{p.Name})
		wantEnds(t, soon, "with a policy that selects the pod", a, false, b, true)
	})
}

func TestPolicyThatHasNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		a, b := openBoth(t, g)
		p := only("friends", mesh.ScopeWorkloadSelector, friend)
		g.apply([]mesh.PolicyName{p.Name})
		wantEnds(t, time.Second, "while the policy is awaited", a, false, b, false)
		g.apply([]mesh.PolicyName{p.Name}, p)
		wantEnds(t, soon, "when it has come", a, false, b, true)
	})
}

func TestPolicyThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		a, b := openBoth(t, g)
		g.apply([]mesh.PolicyName{{Namespace: "shop", Name: "lost"}})
		wantEnds(t, learnTimeout-time.Second, "while the policy is awaited", a, false, b, false)
		wantEnds(t, 2*time.Second, "when it is overdue", a, true, b, true)

		began := time.Now()
		if _, err := g.open(t, friend); reason.Of(err) != reason.DeniedPolicyAbsent || time.Since(began) != learnTimeout {
			t.Errorf("a new connection: %v after %s", err, time.Since(began))
		}
	})
}

func TestNewConnectionWaitsForPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		p := only("friends", mesh.ScopeWorkloadSelector, friend)
		g.apply([]mesh.PolicyName{p.Name})
		time.AfterFunc(time.Second, func() { g.apply([]mesh.PolicyName{p.Name}, p) })
		began := time.Now()
		if _, err := g.open(t, friend); err != nil || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if _, err := g.open(t, stranger); reason.Of(err) != reason.DeniedByDefault {
			t.Errorf("the stranger: %v", err)
		}
	})
}

func TestOwnWorkloadIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		unknown := &Pod{node: g.node, info: mesh.PodInfo{Name: "db-1", Namespace: "shop", ServiceAccount: "db"}}
		began := time.Now()
		_, err := unknown.workload(t.Context())
		if reason.Of(err) != reason.UnknownSource || time.Since(began) != learnTimeout {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
