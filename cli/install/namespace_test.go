package install

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// TestNamespaceEnds: an install waits for the end of a namespace that is being deleted,
// and says what holds it when that takes too long.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	ns := func(phase corev1.NamespacePhase) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mesh"}, Status: corev1.NamespaceStatus{Phase: phase, Conditions: []corev1.NamespaceCondition{
			{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionTrue, Message: "pods. has 1 resource instances"},
			{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Message: "all is known"}}}}
	}
	for _, c := range []struct {
		name string
		ns   *corev1.Namespace
		gone time.Duration // when it is; 0 = never
		took time.Duration
		err  string
	}{
		{name: "none"},
		{name: "stays", ns: ns(corev1.NamespaceActive)},
		{name: "goes", ns: ns(corev1.NamespaceTerminating), gone: 5 * time.Second, took: 5 * time.Second},
		{name: "is held", ns: ns(corev1.NamespaceTerminating), took: time.Minute, err: "not gone after 1m0s: pods. has 1 resource instances"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset()
				if c.ns != nil {
					client = fake.NewClientset(c.ns)
				}
				if c.gone > 0 {
					time.AfterFunc(c.gone-time.Millisecond, func() {
						_ = client.CoreV1().Namespaces().Delete(t.Context(), "mesh", metav1.DeleteOptions{})
					})
				}
				var said bytes.Buffer
				i := &Installer{Cluster: &Cluster{Namespace: "mesh", Client: client}, Out: &said, Timeout: time.Minute}
				start := time.Now()
				err := i.awaitNamespace(t.Context())
				var hint *laptop.HintError
				if (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || !errors.As(err, &hint)) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				if took := time.Since(start); took != c.took {
					t.Errorf("waited %s, want %s", took, c.took)
				}
				if told := strings.Contains(said.String(), "being deleted"); told != (c.took > 0) {
					t.Errorf("said %q", said.String())
				}
			})
		})
	}
}
