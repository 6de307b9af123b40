package kube

import (
	"encoding/json"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

func kindOf(t *testing.T, name string) kind {
	t.Helper()
	for _, k := range kinds() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("no kind %s", name)
	return kind{}
}

func pod(name, ip string, edit func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, ResourceVersion: "1",
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
		Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{…}", "ambient.istio.io/redirection": "enabled"}},
		Spec:   corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Image: "cart", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	if edit != nil {
		edit(p)
	}
	return p
}

func key(name string) source.Key {
	return source.Key{Kind: source.KindPod, Namespace: "shop", Name: name}
}

// taken is what the queue gives, as text.
func taken(t *testing.T, q *queue) (set, removed []string, ok bool) {
	t.Helper()
	u, ok := q.take()
	for _, o := range u.Set {
		set = append(set, o.Key().Name)
	}
	for _, k := range u.Removed {
		removed = append(removed, k.Name)
	}
	slices.Sort(set)
	slices.Sort(removed)
	return set, removed, ok
}

func check(t *testing.T, q *queue, what string, set, removed []string) {
	t.Helper()
	s, r, _ := taken(t, q)
	if !slices.Equal(s, set) || !slices.Equal(r, removed) {
		t.Errorf("%s: set %q, removed %q; want %q and %q", what, s, r, set, removed)
	}
}

// The first update is the whole set; then come changes, each object once, and
// nothing for what the control plane does not read.
func TestStore(t *testing.T) {
	t.Parallel()
	q := newQueue("pods", "services")
	s := newStore(kindOf(t, "pods"), q)
	s.Replace([]any{pod("a", "10.0.0.1", nil), pod("b", "10.0.0.2", nil)}, "1")
	if _, _, ok := taken(t, q); ok {
		t.Error("the set is handed over before every kind has come")
	}
	q.arrived("services")
	check(t, q, "first", []string{"a", "b"}, nil)
	if _, _, ok := taken(t, q); ok {
		t.Error("nothing has changed and there is something to take")
	}

	s.Update(pod("a", "10.0.0.1", func(p *corev1.Pod) {
		p.ResourceVersion, p.ManagedFields = "2", nil
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "Other"})
		p.Annotations["kubectl.kubernetes.io/restartedAt"] = "now"
	}))
	check(t, q, "a change that nobody reads", nil, nil)
	s.Update(pod("a", "10.0.0.9", nil))
	s.Update(pod("a", "10.0.0.8", nil))
	s.Add(pod("c", "10.0.0.3", nil))
	s.Delete(pod("c", "10.0.0.3", nil))
	u, _ := q.take()
	if len(u.Set) != 1 || u.Set[0].(*source.Pod).IPs[0] != "10.0.0.8" || len(u.Removed) != 1 {
		t.Errorf("gathered %+v", u)
	}
	s.Delete(cache.DeletedFinalStateUnknown{Key: "shop/b", Obj: pod("b", "10.0.0.2", nil)})
	check(t, q, "a deletion that was missed", nil, []string{"b"})
	s.Replace([]any{pod("d", "10.0.0.4", nil)}, "9")
	check(t, q, "another list", []string{"d"}, []string{"a"})
	s.clear()
	check(t, q, "not defined any more", nil, []string{"d"})
}

func TestPodIsTrimmed(t *testing.T) {
	t.Parallel()
	q := newQueue()
	s := newStore(kindOf(t, "pods"), q)
	whole := pod("a", "10.0.0.1", nil)
	small, err := s.Transformer()(pod("a", "10.0.0.1", nil))
	if err != nil {
		t.Fatal(err)
	}
	if p := small.(*corev1.Pod); len(p.ManagedFields) > 0 || len(p.Annotations) != 1 || p.Spec.Containers[0].Image != "" {
		t.Errorf("what is gathered first is not small: %+v", p)
	}
	s.Add(small)
	u, _ := q.take()
	want, _ := kindOf(t, "pods").trim(whole)
	if len(u.Set) != 1 || !equal(want, u.Set[0]) {
		t.Errorf("trimmed %+v, want %+v", u.Set, want)
	}
	got := u.Set[0].(*source.Pod)
	if !got.Ready || got.Node != "node-1" || got.Ports[0].Name != "http" || len(got.Annotations) != 1 || got.Key() != key("a") {
		t.Errorf("pod %+v", got)
	}
}

// A policy that cannot be read is a problem, and leaves the last one that could in
// force until it is mended or deleted. Newer fields are no problem.
func TestBadPolicy(t *testing.T) {
	t.Parallel()
	q := newQueue()
	s := newStore(kindOf(t, "authorizationpolicies"), q)
	policy := func(spec string) *custom {
		return &custom{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: json.RawMessage(spec)}
	}
	s.Add(policy(`{"action": "DENY", "newerThanWe": {"are": 1}}`))
	u, _ := q.take()
	if len(u.Set) != 1 || len(u.Problems) != 0 || u.Set[0].(*source.AuthorizationPolicy).Spec.GetAction().String() != "DENY" {
		t.Fatalf("first %+v", u)
	}
	s.Update(policy(`{"action": 3.5}`))
	u, ok := q.take()
	if !ok || len(u.Set)+len(u.Removed) != 0 || len(u.Problems) != 1 || u.Problems[0].Reason != reason.InvalidValue ||
		u.Problems[0].Object != "AuthorizationPolicy/shop/p" {
		t.Errorf("bad %+v", u)
	}
	s.Update(policy(`{"action": "ALLOW"}`))
	if u, _ = q.take(); len(u.Set) != 1 || len(u.Problems) != 0 {
		t.Errorf("mended %+v", u)
	}
	s.Update(policy(`{"action": "NONSENSE"}`))
	s.Delete(policy(`{}`))
	if u, _ = q.take(); len(u.Removed) != 1 || len(u.Problems) != 0 {
		t.Errorf("deleted %+v", u)
	}
}

// A kind that is defined later does not hold up what goes on.
func TestDefinedLater(t *testing.T) {
	t.Parallel()
	q := newQueue(definitions, "pods")
	q.awaitsFirst("gateways")
	q.arrived(definitions)
	q.arrived("pods")
	if _, _, ok := taken(t, q); ok {
		t.Error("gateways were defined at the beginning and have not come")
	}
	q.arrived("gateways")
	if _, _, ok := taken(t, q); !ok {
		t.Error("everything has come, and though there is nothing that is an update")
	}
	q.awaitsFirst("httproutes")
	newStore(kindOf(t, "pods"), q).Add(pod("a", "10.0.0.1", nil))
	check(t, q, "while routes are on their way", []string{"a"}, nil)
}
