package install

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNotOurs: what looks like the mesh's and is somebody else's stays.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	bundle := func(namespace, manager string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: trustBundle, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: manager}}}}
	}
	object := func(kind, name string, labels map[string]any, owner string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name, "labels": labels},
			"spec": map[string]any{"controllerName": controllers[0]}}}
		if kind == "GatewayClass" {
			u.SetAPIVersion("gateway.networking.k8s.io/v1")
			return u
		}
		u.SetNamespace("shop")
		u.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "gateway.networking.k8s.io/v1", Kind: owner, Name: "waypoint", UID: "u"}})
		return u
	}
	managed, culvert := map[string]any{managedLabel: "istio.io-mesh-controller"}, map[string]any{partOf: "culvert"}
	lists := map[schema.GroupVersionResource]string{gatewayClasses: "GatewayClassList"}
	for _, kind := range made {
		lists[kind] = kind.Resource + "List"
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: selfMadeCA}, Data: map[string][]byte{"ca-key.pem": []byte("k")}}
	client := fake.NewClientset(bundle("a", controlName), bundle("b", "pilot-discovery"), bundle("c", "cert-manager-istio-csr"), secret)
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists,
		object("Service", "waypoint", managed, "Gateway"), object("Service", "copied", managed, "Deployment"), object("Service", "unlabelled", nil, "Gateway"),
		object("GatewayClass", "istio-waypoint", culvert, ""), object("GatewayClass", "my-waypoint", nil, ""))
	var said bytes.Buffer
	i := &Installer{Cluster: &Cluster{Namespace: "mesh", Client: client, Dynamic: dynamic}, Out: &said}
	if err := i.removeGateways(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.removeMade(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := func(kind schema.GroupVersionResource) (names []string) {
		list, err := dynamic.Resource(kind).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			names = append(names, o.GetName())
		}
		return names
	}
	if got := left(made[3]); !slices.Equal(got, []string{"copied", "unlabelled"}) {
		t.Errorf("Services left: %v", got)
	}
	if got := left(gatewayClasses); !slices.Equal(got, []string{"my-waypoint"}) {
		t.Errorf("GatewayClasses left: %v", got)
	}
	bundles, err := client.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(bundles.Items) != 2 {
		t.Errorf("%d trust bundles left, %v", len(bundles.Items), err)
	}
	if _, err := client.CoreV1().Secrets("mesh").Get(t.Context(), selfMadeCA, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	secret.Data["authority.json"] = []byte("{}")
	if _, err := client.CoreV1().Secrets("mesh").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := i.removeMade(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets("mesh").Get(t.Context(), selfMadeCA, metav1.GetOptions{}); err == nil {
		t.Errorf("the self-made authority is there still:\n%s", &said)
	}
}

// TestForgotten: what agents have said of pods and nodes goes, what others have said stays.
func TestForgotten(t *testing.T) {
	t.Parallel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: proof, Status: corev1.ConditionTrue}}}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{redirection: "enabled", "other": "stays"}}}
	client := fake.NewClientset(node, pod)
	var said bytes.Buffer
	i := &Installer{Cluster: &Cluster{Namespace: "mesh", Client: client}, Out: &said}
	if err := i.forgetPods(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.forgetNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := client.CoreV1().Nodes().Get(t.Context(), "node1", metav1.GetOptions{})
	if err != nil || len(n.Status.Conditions) != 1 || n.Status.Conditions[0].Type != corev1.NodeReady {
		t.Errorf("the node has %v, %v", n.Status.Conditions, err)
	}
	p, err := client.CoreV1().Pods("shop").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || !maps.Equal(p.Annotations, map[string]string{"other": "stays"}) {
		t.Errorf("the pod has %v, %v", p.Annotations, err)
	}
	if got, want := said.String(), "removed 1 annotation on pods\nremoved 1 condition of a node\n"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}
