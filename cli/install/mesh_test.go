package install

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/access"
)

func TestParsePlain(t *testing.T) {
	t.Parallel()
	line := "2026-08-01T12:00:00.5Z\tinfo\taccess\tconnection complete\t" +
		`src.addr=10.244.1.7:51234 src.workload="cart" src.namespace="shop" dst.service="web.shop.svc.cluster.local" direction="outbound" bytes_sent=120 bytes_recv=7 duration="12ms" error="denied by \"a\""`
	got, ok := parsePlain("ztunnel-n1", line)
	want := access.Record{Component: "ztunnel-n1", Time: time.Date(2026, 8, 1, 12, 0, 0, 5e8, time.UTC), Level: "info", Message: "connection complete",
		SrcAddr: "10.244.1.7:51234", SrcWorkload: "cart", SrcNamespace: "shop", DstService: "web.shop.svc.cluster.local", Direction: "outbound",
		BytesSent: 120, BytesRecv: 7, Duration: "12ms", Error: `denied by "a"`}
	if d := cmp.Diff(want, got); !ok || d != "" {
		t.Error(ok, d)
	}
	for _, other := range []string{"", "2026-08-01T12:00:00Z\tinfo\tproxy\tx\ta=b", "access", "a\tb\taccess"} {
		if _, ok := parsePlain("z", other); ok {
			t.Errorf("%q is no access line", other)
		}
	}
}

// A cluster is told of in the words of a mesh on one machine.
func TestStatusOf(t *testing.T) {
	t.Parallel()
	meta := func(namespace, name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
	}
	ready := corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	in := corev1.Pod{ObjectMeta: meta("shop", "web", nil), Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web"}, Status: ready}
	in.Annotations = map[string]string{redirection: "enabled"}
	yes := true
	in.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5f6d", Controller: &yes}}
	in.Labels = map[string]string{"pod-template-hash": "5f6d"}
	waypoint := corev1.Pod{ObjectMeta: meta("shop", "waypoint", map[string]string{"gateway.networking.k8s.io/gateway-class-name": waypointClass, "istio.io/dataplane-mode": "none"}), Status: ready}
	late := corev1.Pod{ObjectMeta: meta(DefaultNamespace, "ztunnel-x", map[string]string{"app": proxyName}), Spec: corev1.PodSpec{NodeName: "n1"}}
	c := &Cluster{Namespace: DefaultNamespace}
	st := c.statusOf(
		[]corev1.Node{{ObjectMeta: meta("", "n1", nil)}},
		[]corev1.Namespace{{ObjectMeta: meta("", "shop", map[string]string{"istio.io/dataplane-mode": "ambient"})}},
		[]corev1.Pod{in, waypoint, late, {ObjectMeta: meta("kube-system", "dns", nil)}, {ObjectMeta: meta("shop", "new", nil)}, {ObjectMeta: meta("other", "out", nil)}},
		[]corev1.Service{{ObjectMeta: meta("shop", "web", nil), Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.1"}, Ports: []corev1.ServicePort{{Port: 80}}}}},
		[]discoveryv1.EndpointSlice{{ObjectMeta: meta("shop", "web-x", map[string]string{discoveryv1.LabelServiceName: "web"}), Endpoints: []discoveryv1.Endpoint{{}, {}}}})
	states := map[string]laptop.MeshState{}
	for _, p := range st.Pods {
		states[p.Namespace+"/"+p.Name] = p.Mesh
	}
	want := map[string]laptop.MeshState{"shop/web": laptop.MeshIn, "shop/waypoint": laptop.MeshWaypoint, "shop/new": laptop.MeshPending, "other/out": laptop.MeshOut}
	if d := cmp.Diff(want, states); d != "" {
		t.Error(d)
	}
	if st.Ready || !cmp.Equal(st.NotReady, []string{"ztunnel-n1"}) {
		t.Errorf("ready %v, not ready: %q", st.Ready, st.NotReady)
	}
	if st.Pods[0].Deployment != "web" {
		t.Errorf("the pod of a Deployment: %+v", st.Pods[0])
	}
	if s := st.Services[0]; s.Endpoints != 2 || !cmp.Equal(s.Ports, []int32{80}) {
		t.Errorf("%+v", s)
	}
}
