package model_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/trim"
	"github.com/culvert-mesh/culvert/pkg/authz"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netpolicy"
)

// world is a cluster as Kubernetes has it, of few names, so that policies and pods
// meet.
type world struct {
	dice
	namespaces map[string]corev1.Namespace
	pods       map[string]corev1.Pod
	policies   map[string]networkingv1.NetworkPolicy
}

func (w *world) selector() *metav1.LabelSelector {
	switch w.IntN(5) {
	case 0:
		return nil
	case 1:
		return &metav1.LabelSelector{}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{w.of("x", "y")}}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.of("x", "y", "z")}}
}

func (w *world) changeNamespace() source.Object {
	n := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.of("a", "b", "c"), Labels: map[string]string{"app": w.of("x", "y")}}}
	n.Labels[corev1.LabelMetadataName] = n.Name
	w.namespaces[n.Name] = n
	return trim.Namespace(source.Meta{Name: n.Name, Labels: n.Labels})
}

// changePod changes a pod's labels, ports and place; its addresses are its own.
func (w *world) changePod() source.Object {
	n, ns := w.IntN(4), w.IntN(3)
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: string(rune('a' + ns)), Name: fmt.Sprint("p", n), Labels: map[string]string{"app": w.of("x", "y", "z")},
		Annotations: map[string]string{compile.AnnotationRedirection: "enabled"}}}
	p.Spec.ServiceAccountName = w.of("s", "t")
	ports := []corev1.ContainerPort{{Name: "web", ContainerPort: int32(80 + w.IntN(2))}, {Name: "dns", ContainerPort: 82, Protocol: corev1.ProtocolUDP}}
	p.Spec.Containers = []corev1.Container{{Ports: ports[:w.IntN(3)]}}
	if w.IntN(3) == 0 {
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 83}}}}
	}
	p.Status.PodIP = fmt.Sprintf("10.%d.0.%d", ns, n)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}, {IP: fmt.Sprintf("fd00:%d::%d", ns, n)}}
	p.Status.Phase = corev1.PodRunning
	w.pods[p.Namespace+"/"+p.Name] = p
	return trim.Pod(&p, meta(p.ObjectMeta))
}

func meta(o metav1.ObjectMeta) source.Meta {
	return source.Meta{Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, Annotations: o.Annotations}
}

func (w *world) peer() networkingv1.NetworkPolicyPeer {
	if w.IntN(3) == 0 {
		b := &networkingv1.IPBlock{CIDR: w.of("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd00:1::/32", "10.0.0.1/32")}
		if w.IntN(2) == 0 {
			b.Except = []string{w.of("10.0.0.0/30", "10.1.0.2/32", "fd00:1::2/128"), w.of("10.1.0.0/31", "10.0.0.0/8")}
		}
		return networkingv1.NetworkPolicyPeer{IPBlock: b}
	}
	p := networkingv1.NetworkPolicyPeer{PodSelector: w.selector(), NamespaceSelector: w.selector()}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		p.PodSelector = &metav1.LabelSelector{}
	}
	return p
}

func (w *world) port() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if w.IntN(2) == 0 {
		protocol := corev1.Protocol(w.of("TCP", "TCP", "UDP"))
		p.Protocol = &protocol
	}
	switch w.IntN(6) {
	case 0:
	case 1, 2:
		name := intstr.FromString(w.of("web", "dns", "missing"))
		p.Port = &name
	case 3:
		first, end := intstr.FromInt32(int32(1+w.IntN(82))), int32(82)
		if w.IntN(2) == 0 {
			end = 65535
		}
		p.Port, p.EndPort = &first, &end
	default:
		n := intstr.FromInt32(int32(80 + w.IntN(3)))
		p.Port = &n
	}
	return p
}

func (w *world) changePolicy() source.Object {
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: w.of("a", "b"), Name: w.of("n1", "n2", "n3")}}
	if s := w.selector(); s != nil {
		p.Spec.PodSelector = *s
	}
	p.Spec.PolicyTypes = [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[w.IntN(4)]
	for range w.IntN(3) {
		var in networkingv1.NetworkPolicyIngressRule
		for range w.IntN(3) {
			in.From = append(in.From, w.peer())
		}
		for range w.IntN(3) {
			in.Ports = append(in.Ports, w.port())
		}
		p.Spec.Ingress = append(p.Spec.Ingress, in)
	}
	w.policies[p.Namespace+"/"+p.Name] = p
	return trim.NetworkPolicy(&p, meta(p.ObjectMeta))
}

func (w *world) change() (u source.Update) {
	drop := func(kind source.Kind, ns, name string) {
		u.Removed = append(u.Removed, source.Key{Kind: kind, Namespace: ns, Name: name})
	}
	switch w.IntN(8) {
	case 0:
		u.Set = append(u.Set, w.changeNamespace())
	case 1, 2, 3:
		u.Set = append(u.Set, w.changePod())
	case 4:
		for key, p := range w.pods {
			delete(w.pods, key)
			drop(source.KindPod, p.Namespace, p.Name)
			break
		}
	case 5:
		for key, p := range w.policies {
			delete(w.policies, key)
			drop(source.KindNetworkPolicy, p.Namespace, p.Name)
			break
		}
	default:
		u.Set = append(u.Set, w.changePolicy())
	}
	return u
}

func (w *world) cluster() (c netpolicy.Cluster) {
	for _, n := range w.namespaces {
		c.Namespaces = append(c.Namespaces, n)
	}
	for _, p := range w.pods {
		c.Pods = append(c.Pods, p)
	}
	for _, p := range w.policies {
		c.Policies = append(c.Policies, p)
	}
	return c
}

// TestNetworkPolicies holds that what ztunnels are told lets a tunnel pass to a
// port exactly when the cluster's NetworkPolicies let the caller, after every change.
func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := &world{dice{rand.New(rand.NewPCG(seed, 9))}, map[string]corev1.Namespace{}, map[string]corev1.Pod{}, map[string]networkingv1.NetworkPolicy{}}
			m := model.New(compile.Mesh{NetworkPolicies: true})
			for len(w.namespaces) < 3 {
				m.Apply(source.Update{Set: []source.Object{w.changeNamespace()}})
			}
			var passed, denied int
			for range 100 {
				m.Apply(w.change())
				p, d := compare(t, w.cluster(), m)
				passed, denied = passed+p, denied+d
			}
			if passed < 500 || denied < 500 {
				t.Errorf("%d tunnels passed and %d did not: the draw is too narrow", passed, denied)
			}
		})
	}
}

// compare asks both sides about every pair of pods.
func compare(t *testing.T, c netpolicy.Cluster, m *model.Model) (passed, denied int) {
	t.Helper()
	policies, workloads := map[mesh.PolicyName]*mesh.Policy{}, map[string]*mesh.Workload{}
	for _, out := range m.Results() {
		for _, p := range out.Policies {
			policies[p.Name] = p
		}
		for _, w := range out.Workloads {
			workloads[w.Namespace+"/"+w.Name] = w
		}
	}
	for i := range c.Pods {
		to := &c.Pods[i]
		self := workloads[to.Namespace+"/"+to.Name]
		list := policiesOf(t, self, policies)
		for j := range c.Pods {
			from := workloads[c.Pods[j].Namespace+"/"+c.Pods[j].Name]
			for family := range from.Addresses {
				for _, port := range []uint16{79, 80, 81, 82, 83, 65535} {
					want := c.Allowed(netpolicy.Ingress, at(c.Pods[j], from.Addresses[family]), to, port)
					got := authz.Allowed(list, nil, authz.Connection{Source: from.Addresses[family], Identity: from.Identity(),
						Destination: netip.AddrPortFrom(self.Addresses[family], port)})
					if got.Allow != want {
						t.Fatalf("%s at %s to port %d of %s: allowed %v, want %v\nby %v\n%+v", from.Name, from.Addresses[family], port, self.UID, got.Allow, want, self.Policies, list)
					}
					if want {
						passed++
					} else {
						denied++
					}
				}
			}
		}
	}
	return passed, denied
}

// at is the pod with one of its addresses only: blocks are asked about that one.
func at(p corev1.Pod, ip netip.Addr) *corev1.Pod {
	p.Status.PodIP, p.Status.PodIPs = ip.String(), nil
	return &p
}

func policiesOf(t *testing.T, w *mesh.Workload, policies map[mesh.PolicyName]*mesh.Policy) (list []*mesh.Policy) {
	t.Helper()
	for _, name := range w.Policies {
		if policies[name] == nil {
			t.Fatalf("%s names policy %s, which there is not", w.UID, name)
		}
		list = append(list, policies[name])
	}
	return list
}
