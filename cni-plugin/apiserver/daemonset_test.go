package apiserver

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestStays(t *testing.T) {
	t.Parallel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"os": "linux", "cores": "8"}}}
	affinity := func(key string, op corev1.NodeSelectorOperator, values ...string) corev1.PodSpec {
		return corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}}}}}}
	}
	now := metav1.Now()
	for _, c := range []struct {
		name    string
		spec    corev1.PodSpec
		deleted *metav1.Time
		node    *corev1.Node
		stays   bool
		why     string
	}{
		{name: "everywhere", node: node, stays: true, why: "wants a pod"},
		{name: "deleted", deleted: &now, node: node, why: "being deleted"},
		{name: "selected", spec: corev1.PodSpec{NodeSelector: map[string]string{"os": "linux"}}, node: node, stays: true},
		{name: "not selected", spec: corev1.PodSpec{NodeSelector: map[string]string{"os": "linux", "mesh": "yes"}}, node: node, why: "mesh=yes"},
		{name: "node unknown", spec: corev1.PodSpec{NodeSelector: map[string]string{"mesh": "yes"}}, stays: true},
		{name: "in", spec: affinity("os", corev1.NodeSelectorOpIn, "bsd", "linux"), node: node, stays: true},
		{name: "not in", spec: affinity("os", corev1.NodeSelectorOpNotIn, "linux"), node: node, why: "affinity"},
		{name: "exists", spec: affinity("gpu", corev1.NodeSelectorOpExists), node: node, why: "affinity"},
		{name: "does not exist", spec: affinity("gpu", corev1.NodeSelectorOpDoesNotExist), node: node, stays: true},
		{name: "greater", spec: affinity("cores", corev1.NodeSelectorOpGt, "4"), node: node, stays: true},
		{name: "equal is not greater", spec: affinity("cores", corev1.NodeSelectorOpGt, "8"), node: node, why: "affinity"},
		{name: "equal is not less", spec: affinity("cores", corev1.NodeSelectorOpLt, "8"), node: node, why: "affinity"},
		{name: "less", spec: affinity("cores", corev1.NodeSelectorOpLt, "16"), node: node, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: c.deleted}}
			ds.Spec.Template.Spec = c.spec
			if stays, why := Stays(ds, c.node); stays != c.stays || !strings.Contains(why, c.why) {
				t.Errorf("%v, %q", stays, why)
			}
		})
	}
}
