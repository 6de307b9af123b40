package podsource

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/folder"
)

const objects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u1, labels: {app: cart}}
spec:
  nodeName: node-1
  serviceAccountName: cart-sa
  containers:
  - name: cart
    ports: [{name: health, containerPort: 8081}]
    readinessProbe: {httpGet: {path: /, port: health}}
    livenessProbe: {tcpSocket: {port: 8080}}
    startupProbe: {grpc: {port: 9000}}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop, uid: u2}
spec: {nodeName: node-2, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: shop, uid: u3}
spec: {nodeName: node-1, containers: nonsense}
---
apiVersion: v1
kind: Pod
metadata: {name: climber, namespace: shop, uid: ../../u4}
spec: {nodeName: node-1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop}
spec: {nodeName: node-1, containers: []}
`

func TestFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(objects), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src := NewFolders("node-1", folder.Layers{Base: []string{dir}}, slog.New(slog.DiscardHandler))
	var got Snapshot
	if err := src.Run(ctx, func(s Snapshot) { got = s; cancel() }); err != nil {
		t.Fatal(err)
	}
	want := enroll.Pod{
		UID: "u1", Name: "cart", Namespace: "shop", ServiceAccount: "cart-sa", Node: "node-1",
		Labels:     map[string]string{"app": "cart"},
		IPs:        []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		ProbePorts: []uint16{8080, 8081, 9000},
	}
	if d := cmp.Diff(want, got.Pods["u1"], cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if len(got.Pods) != 1 {
		t.Errorf("%d pods, want only the readable one of this node", len(got.Pods))
	}
	if ns := got.Namespaces["shop"]; ns.Labels[enroll.LabelDataplaneMode] != "ambient" {
		t.Errorf("namespace %+v", ns)
	}
	if !slices.Equal(got.Pods["u1"].ProbePorts, want.ProbePorts) {
		t.Error(got.Pods["u1"].ProbePorts)
	}
}
