package apiserver

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestPatchesHold: a patch applies to the pod, and to the taints, that were meant
// and to no others.
func TestPatchesHold(t *testing.T) {
	t.Parallel()
	patch, err := patchOf("the-uid", "enabled")
	if err != nil || !strings.Contains(string(patch), `"uid":"the-uid"`) {
		t.Errorf("%s %v", patch, err)
	}
	taints := []corev1.Taint{{Key: "ours", Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoExecute}}
	patch, removed, err := untaint(taints, []string{"ours"})
	want := `[{"op":"test","path":"/spec/taints","value":[{"key":"ours","effect":"NoSchedule"},{"key":"other","effect":"NoExecute"}]},` +
		`{"op":"replace","path":"/spec/taints","value":[{"key":"other","effect":"NoExecute"}]}]`
	if err != nil || string(patch) != want || len(removed) != 1 {
		t.Errorf("%s, removed %v, %v", patch, removed, err)
	}
}
