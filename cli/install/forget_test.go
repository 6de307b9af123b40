package install

import (
	"bytes"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/status"
)

// TestForgetStatus: what the control plane said of services goes, and only that.
func TestForgetStatus(t *testing.T) {
	t.Parallel()
	service := func(name, operation string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Service",
			"metadata": map[string]any{"namespace": "shop", "name": name},
			"status": map[string]any{"conditions": []any{
				map[string]any{"type": "istio.io/WaypointBound", "status": "True"}, map[string]any{"type": "example.com/Other", "status": "True"}}}}}
		u.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "istio-ambient-service", Operation: metav1.ManagedFieldsOperationType(operation), Subresource: "status"}})
		return u
	}
	lists := map[schema.GroupVersionResource]string{gateways: "GatewayList"}
	for _, kind := range status.Kinds() {
		lists[status.Resource(kind)] = string(kind) + "List"
	}
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, service("ours", "Update"), service("theirs", "Apply"))
	var said bytes.Buffer
	i := &Installer{Cluster: &Cluster{Namespace: "mesh", Dynamic: dynamic}, Out: &said}
	if err := i.forgetStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"ours": 1, "theirs": 2} {
		s, err := dynamic.Resource(status.Resource(source.KindService)).Namespace("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if conditions, _, _ := unstructured.NestedSlice(s.Object, "status", "conditions"); len(conditions) != want {
			t.Errorf("%s has %v", name, conditions)
		}
	}
	if !strings.Contains(said.String(), "removed 1 object's conditions") {
		t.Errorf("said %q", &said)
	}
}
