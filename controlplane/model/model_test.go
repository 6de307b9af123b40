package model_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/controlplane/xds/workload"
)

// dice makes random objects out of few names, so that they meet.
type dice struct{ *rand.Rand }

func (d dice) of(values ...string) string { return values[d.IntN(len(values))] }
func (d dice) namespace() string          { return d.of("a", "b", "istio-system") }
func (d dice) labels() map[string]string {
	l := map[string]string{}
	if d.IntN(3) > 0 {
		l["app"] = d.of("x", "y", "z")
	}
	if d.IntN(3) == 0 {
		l["version"] = d.of("v1", "v2")
	}
	if d.IntN(4) == 0 {
		l[compile.LabelUseWaypoint] = d.of("wp", "other", "none", "missing")
	}
	if d.IntN(8) == 0 {
		l[compile.LabelUseWaypointNamespace] = d.namespace()
	}
	return l
}

func (d dice) meta(names ...string) source.Meta {
	return source.Meta{Namespace: d.namespace(), Name: d.of(names...), Labels: d.labels(), Annotations: map[string]string{},
		Created: time.Unix(int64(d.IntN(4)), 0)}
}

func (d dice) selector() *typev1beta1.WorkloadSelector {
	if d.IntN(2) == 0 {
		return nil
	}
	return &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": d.of("x", "y", "z")}}
}

func (d dice) object() source.Object {
	switch d.IntN(18) {
	case 0:
		m := d.meta("n")
		m.Name, m.Namespace = m.Namespace, ""
		return &source.Namespace{Meta: m}
	case 1:
		return &source.Node{Meta: source.Meta{Name: d.of("n1", "n2"), Labels: map[string]string{"topology.kubernetes.io/zone": d.of("1", "2")}}}
	case 2, 3, 4:
		return d.pod()
	case 5, 6:
		return d.service()
	case 7, 8:
		return d.policy()
	case 9:
		return d.peerAuthentication()
	case 10:
		return d.gateway()
	case 11:
		return (&world{dice: d, policies: map[string]networkingv1.NetworkPolicy{}}).changePolicy()
	case 12:
		return d.serviceEntry()
	case 13:
		return d.workloadEntry()
	case 14:
		return d.endpointSlice()
	case 15:
		return d.referenceGrant()
	case 16:
		return d.grpcRoute()
	}
	return d.route()
}

func (d dice) pod() source.Object {
	p := &source.Pod{Meta: d.meta("p1", "p2", "p3", "p4"), ServiceAccount: d.of("s", "t"), Node: d.of("n1", "n2"),
		Phase: d.of("Running", "Running", "Failed"), Ready: d.IntN(2) == 0, IPs: []string{d.of("10.0.0.1", "10.0.0.2", "bad")}}
	if d.IntN(2) == 0 {
		p.Annotations[compile.AnnotationRedirection] = "enabled"
		p.Ports = []source.ContainerPort{{Name: "web", Port: 8080, Protocol: "TCP"}}
	}
	return p
}

func (d dice) service() source.Object {
	return &source.Service{Meta: d.meta("s1", "s2", "s3"), Type: d.of("ClusterIP", "ClusterIP", "ExternalName"),
		ClusterIPs: []string{d.of("10.96.0.1", "10.96.0.2", "None", "worse")}, Selector: d.selector().GetMatchLabels(),
		Ports: []source.ServicePort{{Name: d.of("http", "tcp", ""), Port: int32(80 + d.IntN(2)), TargetName: d.of("", "web"), Protocol: "TCP"}}}
}

func (d dice) policy() source.Object {
	spec := &security.AuthorizationPolicy{Selector: d.selector(), Action: security.AuthorizationPolicy_Action(d.IntN(4)),
		Rules: []*security.Rule{{From: []*security.Rule_From{{Source: &security.Source{Namespaces: []string{d.of("a", "b*")}}}}}}}
	switch d.IntN(4) {
	case 0:
		spec.Rules[0].To = []*security.Rule_To{{Operation: &security.Operation{Paths: []string{"/x"}}}}
	case 1:
		spec.Rules[0].When = []*security.Condition{{Key: "source.ip", Values: []string{d.of("10.0.0.0/8", "10.0.0.0/99")}}}
	}
	if d.IntN(3) == 0 {
		spec.Selector = nil
		spec.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: d.of("Service", "Gateway", "GatewayClass"), Name: d.of("s1", "s2", "wp", "istio-waypoint")}}
	}
	return &source.AuthorizationPolicy{Meta: d.meta("ap1", "ap2", "ap3"), Spec: spec}
}

func (d dice) peerAuthentication() source.Object {
	mode := func() *security.PeerAuthentication_MutualTLS {
		return &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_Mode(d.IntN(4))}
	}
	spec := &security.PeerAuthentication{Selector: d.selector(), Mtls: mode()}
	if d.IntN(2) == 0 {
		spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{80: mode(), 81: mode()}
	}
	return &source.PeerAuthentication{Meta: d.meta("pa1", "pa2"), Spec: spec}
}

func (d dice) gateway() source.Object {
	g := &source.Gateway{Meta: d.meta("wp", "other")}
	g.Labels[compile.LabelWaypointFor] = d.of("", "service", "workload", "all")
	g.Annotations[compile.AnnotationWaypointOnly] = d.of("true", "false")
	g.Spec.GatewayClassName = gatewayv1.ObjectName(d.of("istio-waypoint", "istio-waypoint", "istio"))
	from := gatewayv1.FromNamespaces(d.of("Same", "All"))
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE",
		AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &from}}}}
	if d.IntN(4) > 0 {
		g.Addresses = []source.Address{{Type: "IPAddress", Value: d.of("10.96.0.9", "no")}}
	}
	return g
}

func (d dice) route() source.Object {
	kind, group, ns := gatewayv1.Kind("Service"), gatewayv1.Group(""), gatewayv1.Namespace(d.namespace())
	r := &source.HTTPRoute{Meta: d.meta("r1", "r2")}
	r.Spec.ParentRefs = []gatewayv1.ParentReference{{Group: &group, Kind: &kind, Namespace: &ns, Name: gatewayv1.ObjectName(d.of("s1", "s2"))}}
	port := gatewayv1.PortNumber(80)
	path := d.of("/", "/a", "relative")
	r.Spec.Rules = []gatewayv1.HTTPRouteRule{{
		Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Value: &path}}},
		BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{
			Name: gatewayv1.ObjectName(d.of("s1", "s2", "s3")), Namespace: &ns, Port: &port}}}},
	}}
	return r
}

// state is everything that a model says, in a form that can be compared.
func state(m *model.Model) map[string]string {
	out := map[string]string{}
	for key, o := range m.Results() {
		for _, r := range append(workload.Resources(o), waypoint.Resources(o)...) {
			out[key.String()+" "+r.Type+" "+r.Name.Name+" "+r.Scope] = r.Version
		}
		for _, c := range o.Conditions {
			out[fmt.Sprint("condition ", c)] = ""
		}
	}
	return out
}

// TestIncremental compares, after every one of many random changes, what the
// model has kept up to date with what a new model makes of the same objects; and
// what streams would have been told with what there is.
func TestIncremental(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			incremental(t, dice{rand.New(rand.NewPCG(seed, 1))}, 250)
		})
	}
}

func incremental(t *testing.T, d dice, steps int) {
	m := model.New(compile.Mesh{NetworkPolicies: true})
	held := map[source.Key]source.Object{}
	told := map[string]string{} // by the changes alone
	owners := map[source.Key][]string{}
	for step := range steps {
		u := d.update(held)
		keep(held, u)
		for _, c := range m.Apply(u) {
			for _, name := range owners[c.Key] {
				delete(told, name)
			}
			owners[c.Key] = nil
			for _, r := range append(workload.Resources(c.Output), waypoint.Resources(c.Output)...) {
				name := c.Key.String() + " " + r.Type + " " + r.Name.Name + " " + r.Scope
				owners[c.Key] = append(owners[c.Key], name)
				told[name] = r.Version
			}
		}
		fresh := model.New(compile.Mesh{NetworkPolicies: true})
		var all source.Update
		for _, o := range held {
			all.Set = append(all.Set, o)
		}
		slices.SortFunc(all.Set, func(a, b source.Object) int { return a.Key().Compare(b.Key()) })
		fresh.Apply(all)
		want := state(fresh)
		if diff := cmp.Diff(want, state(m)); diff != "" {
			t.Fatalf("step %d, after %v (-rebuilt +incremental):\n%s", step, u, diff)
		}
		for name, version := range want {
			if len(name) < 9 || name[:9] != "condition" {
				if told[name] != version {
					t.Fatalf("step %d: %s was told as %q, is %q", step, name, told[name], version)
				}
			}
		}
		if got := len(told) - 1; got != countResources(want) { // the mesh's own policy belongs to no object
			t.Fatalf("step %d: %d resources told, %d there", step, got, countResources(want))
		}
	}
}

func countResources(s map[string]string) int {
	n := 0
	for _, version := range s {
		if version != "" {
			n++
		}
	}
	return n
}

// update draws a few changes, each of another object.
func (d dice) update(held map[source.Key]source.Object) source.Update {
	var u source.Update
	used := map[source.Key]bool{}
	for range 1 + d.IntN(3) {
		if len(held) > 10 && d.IntN(4) == 0 {
			keys := make([]source.Key, 0, len(held))
			for k := range held {
				keys = append(keys, k)
			}
			slices.SortFunc(keys, source.Key.Compare)
			if k := keys[d.IntN(len(keys))]; !used[k] {
				used[k] = true
				u.Removed = append(u.Removed, k)
			}
			continue
		}
		if o := d.object(); !used[o.Key()] {
			used[o.Key()] = true
			u.Set = append(u.Set, o)
		}
	}
	return u
}

// keep applies the rule for objects that are wrong by themselves.
func keep(held map[source.Key]source.Object, u source.Update) {
	for _, o := range u.Set {
		_, has := held[o.Key()]
		if len(compile.Validate(o)) > 0 && (has || o.Key().Kind != source.KindAuthorizationPolicy) {
			continue
		}
		held[o.Key()] = o
	}
	for _, k := range u.Removed {
		delete(held, k)
	}
}

func TestLastGoodVersion(t *testing.T) {
	t.Parallel()
	m := model.New(compile.Mesh{})
	svc := func(port int32) source.Update {
		return source.Update{Set: []source.Object{&source.Service{Meta: source.Meta{Namespace: "a", Name: "s"}, Type: "ClusterIP",
			ClusterIPs: []string{"10.96.0.1"}, Ports: []source.ServicePort{{Port: port, Protocol: "TCP"}}}}}
	}
	key := source.Key{Kind: source.KindService, Namespace: "a", Name: "s"}
	if m.Apply(svc(0)); len(m.Results()) != 0 || len(m.Conditions()) != 1 {
		t.Fatalf("a service that never was good: %v, %v", m.Results(), m.Conditions())
	}
	m.Apply(svc(80))
	m.Apply(svc(70000))
	if got := m.Results()[key].Services[0].Ports[0].Service; got != 80 {
		t.Errorf("port %d serves, want the last good 80", got)
	}
	if c := m.Conditions(); len(c) != 1 || c[0].Field != "spec.ports[0].port" {
		t.Errorf("conditions %v", c)
	}
	if m.Apply(svc(81)); len(m.Conditions()) != 0 || m.Results()[key].Services[0].Ports[0].Service != 81 {
		t.Errorf("after the repair: %v", m.Conditions())
	}
	m.Apply(source.Update{Removed: []source.Key{key}})
	if m.Len() != 0 {
		t.Error("removed object is still there")
	}
}

func TestRuns(t *testing.T) {
	t.Parallel()
	m := model.New(compile.Mesh{})
	pod := func(phase, node string) source.Update {
		return source.Update{Set: []source.Object{&source.Pod{Meta: source.Meta{Namespace: "a", Name: "p"}, ServiceAccount: "s", Node: node, Phase: phase}}}
	}
	for i, c := range []struct {
		update source.Update
		n1, n2 bool
	}{
		{pod("Pending", "n1"), true, false},
		{pod("Running", "n2"), false, true},
		{pod("Failed", "n2"), false, false},
		{pod("Running", "n1"), true, false},
		{source.Update{Removed: []source.Key{{Kind: source.KindPod, Namespace: "a", Name: "p"}}}, false, false},
	} {
		m.Apply(c.update)
		if n1, n2 := m.Runs("n1", "a", "s"), m.Runs("n2", "a", "s"); n1 != c.n1 || n2 != c.n2 {
			t.Errorf("step %d: runs on n1 %v, on n2 %v", i, n1, n2)
		}
	}
}
