package workloads

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// world draws small random meshes in which everything collides often.
type world struct{ *rand.Rand }

func (r world) name(prefix string, n int) string { return fmt.Sprint(prefix, r.IntN(n)) }

func (r world) serviceName() mesh.ServiceName {
	return mesh.ServiceName{Namespace: r.name("ns", 3), Hostname: r.name("host", 5)}
}

func (r world) uid() mesh.UID {
	kind := []string{"//Pod/", "/networking.istio.io/WorkloadEntry/"}[r.IntN(2)]
	return mesh.UID("c" + kind + r.name("w", 30))
}

func (r world) netAddr() mesh.NetAddr {
	return mesh.NetAddr{Network: mesh.Network(r.name("net", 2)), Addr: addr(r.IntN(20))}
}

func (r world) policyName() mesh.PolicyName {
	return mesh.PolicyName{Namespace: r.name("ns", 3), Name: r.name("p", 4)}
}

func (r world) workload() *mesh.Workload {
	uid := r.uid()
	w := &mesh.Workload{
		UID: uid, Name: string(uid[len(uid)-2:]), Namespace: r.name("ns", 3),
		Network: mesh.Network(r.name("net", 2)), ServiceAccount: r.name("sa", 2), Node: r.name("node", 2),
		Protocol: mesh.TunnelProtocol(r.IntN(2)), Status: mesh.Health(r.IntN(2)),
	}
	if r.IntN(4) == 0 {
		w.NetworkMode = mesh.NetworkHost
	}
	if r.IntN(3) == 0 {
		w.Hostname = r.name("host", 5)
	}
	for range r.IntN(3) {
		w.Addresses = append(w.Addresses, addr(r.IntN(20)))
	}
	for range r.IntN(3) {
		if name := r.serviceName(); !slices.ContainsFunc(w.Services, func(m mesh.Membership) bool { return m.Service == name }) {
			w.Services = append(w.Services, mesh.Membership{Service: name, Ports: []mesh.Port{{Service: 80, Target: uint16(r.IntN(3))}}})
		}
	}
	for range r.IntN(3) {
		if name := r.policyName(); !slices.Contains(w.Policies, name) {
			w.Policies = append(w.Policies, name)
		}
	}
	return w
}

func (r world) service() *mesh.Service {
	n := r.serviceName()
	s := &mesh.Service{
		Namespace: n.Namespace, Hostname: n.Hostname,
		Canonical: r.IntN(2) == 0, NamespaceOnly: r.IntN(3) == 0,
	}
	for range r.IntN(3) {
		s.VIPs = append(s.VIPs, r.netAddr())
	}
	for range r.IntN(3) {
		a := r.netAddr()
		p, _ := a.Addr.Prefix(a.Addr.BitLen() - 1 - r.IntN(6))
		s.CIDRs = append(s.CIDRs, mesh.NetPrefix{Network: a.Network, Prefix: p})
	}
	return s
}

func (r world) update() (u Update) {
	for range r.IntN(4) {
		u.Workloads = append(u.Workloads, r.workload())
	}
	for range r.IntN(3) {
		u.Services = append(u.Services, r.service())
	}
	for range r.IntN(2) {
		u.Policies = append(u.Policies, &mesh.Policy{Name: r.policyName(), Scope: mesh.Scope(r.IntN(3)), DryRun: r.IntN(2) == 0})
	}
	for range r.IntN(3) {
		u.RemovedWorkloads = append(u.RemovedWorkloads, r.uid())
	}
	for range r.IntN(2) {
		u.RemovedServices = append(u.RemovedServices, r.serviceName())
		u.RemovedPolicies = append(u.RemovedPolicies, r.policyName())
		u.Removed = append(u.Removed, string(r.uid()), r.serviceName().String())
	}
	return u
}

// TestStoreAgainstOracle applies random updates to the store and to an oracle that
// scans everything, and compares every lookup.
func TestStoreAgainstOracle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		r := world{rand.New(rand.NewPCG(seed, 1))}
		s, o := New(), newOracle()
		for step := range 80 {
			u := r.update()
			s.Apply(u)
			o.apply(u)
			if step%4 != 0 {
				continue // several updates between two looks
			}
			compare(t, fmt.Sprintf("seed %d step %d", seed, step), s, o)
			if t.Failed() {
				return
			}
		}
	}
}

func compare(t *testing.T, at string, s *Store, o *oracle) {
	t.Helper()
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s\ngot  %v\nwant %v", at, what, got, want)
		}
	}
	w, v, p := s.Len()
	same("sizes", [3]int{w, v, p}, [3]int{len(o.workloads), len(o.services), len(o.policies)})
	for i := range 30 {
		for _, kind := range []string{"//Pod/", "/networking.istio.io/WorkloadEntry/"} {
			uid := mesh.UID(fmt.Sprint("c", kind, "w", i))
			same("workload "+string(uid), s.Workload(uid), o.Workload(uid))
		}
		for ns := range 3 {
			for sa := range 2 {
				for _, node := range []string{"", "node0"} {
					info := mesh.PodInfo{Name: fmt.Sprint("w", i), Namespace: fmt.Sprint("ns", ns), ServiceAccount: fmt.Sprint("sa", sa)}
					same("pod "+info.String(), s.WorkloadByInfo(info, node), o.WorkloadByInfo(info, node))
				}
			}
		}
	}
	for i := range 20 {
		for n := range 2 {
			a := mesh.NetAddr{Network: mesh.Network(fmt.Sprint("net", n)), Addr: addr(i)}
			same("address "+a.String(), s.WorkloadByAddr(a), o.WorkloadByAddr(a))
			for ns := range 4 {
				client := fmt.Sprint("ns", ns)
				same("VIP "+a.String()+" from "+client, s.ServiceByVIP(a, client), o.ServiceByVIP(a, client))
			}
		}
	}
	for ns := range 3 {
		for h := range 5 {
			n := mesh.ServiceName{Namespace: fmt.Sprint("ns", ns), Hostname: fmt.Sprint("host", h)}
			same("service "+n.String(), s.Service(n), o.Service(n))
			same("host "+n.String(), s.WorkloadByHost(n), o.WorkloadByHost(n))
			same("services "+n.Hostname, s.ServicesByHost(n.Hostname), o.ServicesByHost(n.Hostname))
			same("endpoints "+n.String(), s.Endpoints(n), o.Endpoints(n))
		}
	}
	comparePolicies(same, s, o)
}

func comparePolicies(same func(string, any, any), s *Store, o *oracle) {
	byName := func(list []*mesh.Policy) map[mesh.PolicyName]*mesh.Policy {
		m := map[mesh.PolicyName]*mesh.Policy{}
		for _, p := range list {
			m[p.Name] = p
		}
		return m
	}
	for _, w := range o.workloads {
		got, gotMissing := s.PoliciesFor(w)
		want, wantMissing := o.PoliciesFor(w)
		same("number of policies", len(got), len(want))
		same("policies of "+string(w.UID), byName(got), byName(want))
		same("missing policies", gotMissing, wantMissing)
		again, _ := s.AppendPolicies(nil, w)
		same("appended policies", byName(again), byName(want))
	}
}

func TestServiceUpdateKeepsEndpointsAndAge(t *testing.T) {
	t.Parallel()
	vip := mesh.NetAddr{Addr: netip.MustParseAddr("10.96.0.1")}
	service := func(ns string) *mesh.Service {
		return &mesh.Service{Namespace: ns, Hostname: "a", VIPs: []mesh.NetAddr{vip}}
	}
	name := mesh.ServiceName{Namespace: "x", Hostname: "a"}
	s := New()
	s.Apply(Update{Workloads: []*mesh.Workload{{UID: "w", Services: []mesh.Membership{{Service: name}}}}})
	if got := s.Dump().StagedServices; len(got) != 1 {
		t.Errorf("staged services = %v, want the one whose service is unknown", got)
	}
	s.Apply(Update{Services: []*mesh.Service{service("x"), service("y")}})
	s.Apply(Update{Services: []*mesh.Service{service("x")}})
	if got := s.Endpoints(name); len(got) != 1 || got[0].Workload.UID != "w" {
		t.Errorf("endpoints after update = %v, want w", got)
	}
	if got := s.ServiceByVIP(vip, "z"); got.Namespace != "x" {
		t.Errorf("service of %v = %v, want the older one", vip, got.Key())
	}
	if got := s.Dump().StagedServices; len(got) != 0 {
		t.Errorf("staged services = %v, want none", got)
	}
}

func TestPolicyVersion(t *testing.T) {
	t.Parallel()
	policy := func(dry bool) *mesh.Policy {
		return &mesh.Policy{Name: mesh.PolicyName{Namespace: "ns", Name: "p"}, DryRun: dry}
	}
	workload := func(names ...mesh.PolicyName) *mesh.Workload {
		return &mesh.Workload{UID: "w", Policies: names}
	}
	named := mesh.PolicyName{Namespace: "ns", Name: "p"}
	s := New()
	for _, step := range []struct {
		what  string
		u     Update
		grows bool
	}{
		{"a policy arrives", Update{Policies: []*mesh.Policy{policy(false)}}, true},
		{"the same arrives again", Update{Policies: []*mesh.Policy{policy(false)}}, false},
		{"it changes", Update{Policies: []*mesh.Policy{policy(true)}}, true},
		{"a workload arrives", Update{Workloads: []*mesh.Workload{workload()}}, false},
		{"it names a policy", Update{Workloads: []*mesh.Workload{workload(named)}}, true},
		{"it comes again", Update{Workloads: []*mesh.Workload{workload(named)}}, false},
		{"it is replaced", Update{Removed: []string{"w"}, Workloads: []*mesh.Workload{workload()}}, true},
		{"it goes", Update{RemovedWorkloads: []mesh.UID{"w"}}, false},
		{"the policy goes", Update{RemovedPolicies: []mesh.PolicyName{named}}, true},
		{"nothing", Update{}, false},
	} {
		before, changed := s.PolicyVersion(), s.PolicyChanged()
		s.Apply(step.u)
		if grew := s.PolicyVersion() != before; grew != step.grows {
			t.Errorf("%s: version grew = %v, want %v", step.what, grew, step.grows)
		}
		select {
		case <-changed:
			if !step.grows {
				t.Errorf("%s: signalled", step.what)
			}
		default:
			if step.grows {
				t.Errorf("%s: not signalled", step.what)
			}
		}
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New()
		known := func(v View) bool { return v.Workload("w") != nil }
		done := make(chan error, 1)
		go func() { done <- s.Wait(t.Context(), known) }()
		synctest.Wait()
		s.Apply(Update{Workloads: []*mesh.Workload{{UID: "other"}}})
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Wait returned %v before the workload came", err)
		default:
		}
		s.Apply(Update{Workloads: []*mesh.Workload{{UID: "w"}}})
		if err := <-done; err != nil {
			t.Errorf("Wait: %v", err)
		}
		cause := errors.New("gave up")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if err := s.Wait(ctx, func(View) bool { return false }); !errors.Is(err, cause) {
			t.Errorf("Wait = %v, want %v", err, cause)
		}
	})
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	s := New()
	var got []Change
	cancel := s.Subscribe(func(c Change) { got = append(got, c) })
	w := &mesh.Workload{UID: "w"}
	s.Apply(Update{Workloads: []*mesh.Workload{w}})
	s.Apply(Update{Removed: []string{"unknown"}})
	s.Apply(Update{Removed: []string{"w"}})
	cancel()
	cancel()
	s.Apply(Update{Workloads: []*mesh.Workload{w}})
	if len(got) != 2 || got[0].Workloads[0] != w || got[1].RemovedWorkloads[0] != w {
		t.Errorf("changes = %+v, want one with w added and one with w removed", got)
	}
}

// TestConcurrentReaders looks up what is always there while everything else comes
// and goes; with -race it also checks that published values are left alone.
func TestConcurrentReaders(t *testing.T) {
	t.Parallel()
	s := New()
	vip := mesh.NetAddr{Network: "n", Addr: netip.MustParseAddr("10.96.0.1")}
	name := mesh.ServiceName{Namespace: "keep", Hostname: "keep"}
	s.Apply(Update{
		Workloads: []*mesh.Workload{{UID: "keep", Services: []mesh.Membership{{Service: name}}}},
		Services:  []*mesh.Service{{Namespace: "keep", Hostname: "keep", VIPs: []mesh.NetAddr{vip}}},
	})
	stop, done := make(chan struct{}), make(chan error, 4)
	for range 4 {
		go func() { done <- read(s, vip, name, stop) }()
	}
	r := world{rand.New(rand.NewPCG(9, 9))}
	for range 800 {
		s.Apply(r.update())
	}
	close(stop)
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func read(s *Store, vip mesh.NetAddr, name mesh.ServiceName, stop chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if s.Workload("keep") == nil || s.ServiceByVIP(vip, "") == nil || len(s.Endpoints(name)) != 1 {
			return errors.New("what was never removed was not found")
		}
		if w := s.WorkloadByAddr(mesh.NetAddr{Network: "net0", Addr: addr(i % 20)}); w != nil {
			s.PoliciesFor(w)
		}
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	s := New()
	fill(s, 2000)
	v := View(s)
	w, service := v.Workload(testUID(7)), testService(3)
	unnamed := *w // names no policy
	unnamed.Policies = nil
	for what, f := range map[string]func(){
		"Workload":       func() { v.Workload(w.UID) },
		"WorkloadByAddr": func() { v.WorkloadByAddr(mesh.NetAddr{Network: w.Network, Addr: w.Addresses[0]}) },
		"WorkloadByInfo": func() {
			v.WorkloadByInfo(mesh.PodInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, "")
		},
		"ServiceByVIP":   func() { v.ServiceByVIP(mesh.NetAddr{Network: w.Network, Addr: testVIP(3)}, "ns-1") },
		"ServicesByHost": func() { v.ServicesByHost(service.Hostname) },
		"Endpoints":      func() { v.Endpoints(service) },
		"PoliciesFor":    func() { v.PoliciesFor(&unnamed) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}
