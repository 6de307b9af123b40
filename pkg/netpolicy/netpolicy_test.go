package netpolicy

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

// read decodes the objects of a case.
func read(t *testing.T, text string) (c Cluster) {
	t.Helper()
	docs := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(text)))
	buf := make([]byte, 1<<16)
	for {
		n, err := docs.Read(buf)
		if err == io.EOF {
			return c
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		decode := func(v any) {
			if err := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(buf[:n]), 1<<16).Decode(v); err != nil {
				t.Fatal(err)
			}
		}
		decode(&kind)
		switch kind.Kind {
		case "Pod":
			c.Pods = append(c.Pods, corev1.Pod{})
			decode(&c.Pods[len(c.Pods)-1])
		case "Namespace":
			c.Namespaces = append(c.Namespaces, corev1.Namespace{})
			decode(&c.Namespaces[len(c.Namespaces)-1])
		case "NetworkPolicy":
			c.Policies = append(c.Policies, networkingv1.NetworkPolicy{})
			decode(&c.Policies[len(c.Policies)-1])
		default:
			t.Fatalf("kind %q", kind.Kind)
		}
	}
}

func TestBlocked(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		var out strings.Builder
		for _, f := range Blocked(read(t, string(c.Section(t, "objects")))) {
			fmt.Fprintf(&out, "%s %s %v\n  %s\n  → %s\n", f.Pod, f.Direction, f.Peers, f.Message(), f.Fix())
		}
		c.Want(t, "want", out.String())
	})
}

// TestAllowed: the semantics of policies, one line each.
func TestAllowed(t *testing.T) {
	t.Parallel()
	pod := func(ns, name, ip string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels},
			Spec:   corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
			Status: corev1.PodStatus{PodIP: ip}}
	}
	server := pod("shop", "server", "10.0.0.1", map[string]string{"app": "server"})
	near := pod("shop", "near", "10.0.0.2", map[string]string{"app": "near"})
	far := pod("other", "far", "10.1.0.2", map[string]string{"app": "near"})
	node := pod("other", "node", "10.2.0.2", map[string]string{"app": "near"})
	node.Spec.HostNetwork = true
	namespaces := `
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: a}}
---
`
	for _, c := range []struct {
		name, spec string
		from       *corev1.Pod
		port       uint16
		allowed    bool
	}{
		{"nobody selects it", `{podSelector: {matchLabels: {app: x}}}`, near, 80, true},
		{"isolated", `{podSelector: {}}`, near, 80, false},
		{"egress only says nothing of ingress", `{podSelector: {}, policyTypes: [Egress]}`, near, 80, true},
		{"an empty rule allows all", `{podSelector: {}, ingress: [{}]}`, far, 80, true},
		{"port", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, near, 80, true},
		{"other port", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, near, 81, false},
		{"range", `{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}`, near, 15008, true},
		{"after the range", `{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}`, near, 15011, false},
		{"named port", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, near, 8080, true},
		{"other named port", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, near, 80, false},
		{"UDP", `{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}`, near, 80, false},
		{"any TCP port", `{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}`, near, 80, true},
		{"pods of the same namespace", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}`, near, 80, true},
		{"pods of another namespace", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}`, far, 80, false},
		{"namespace", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}`, far, 80, true},
		{"namespace and pods", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: x}}}]}]}`, far, 80, false},
		{"namespace by name", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}]}`, near, 80, true},
		{"block", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}`, far, 80, true},
		{"outside the block", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}`, near, 80, false},
		{"exception", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}`, far, 80, false},
		{"host network has no labels", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, node, 80, false},
		{"host network has an address", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.2.0.0/16}}]}]}`, node, 80, true},
		{"either peer", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16}}, {podSelector: {}}]}]}`, near, 80, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cluster := read(t, namespaces+"kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: "+c.spec+"\n")
			if got := cluster.Allowed(Ingress, c.from, server, c.port); got != c.allowed {
				t.Errorf("allowed %v, want %v", got, c.allowed)
			}
		})
	}
	cluster := read(t, "kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}], to: [{podSelector: {matchLabels: {app: server}}}]}]}\n")
	if !cluster.Allowed(Egress, near, server, 80) || cluster.Allowed(Egress, near, server, 81) || cluster.Allowed(Egress, near, far, 80) || !cluster.Allowed(Egress, far, server, 81) {
		t.Error("egress")
	}
}
