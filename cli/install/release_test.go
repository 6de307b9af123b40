package install

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/release/common"
	"helm.sh/helm/v4/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

func TestRollbackTarget(t *testing.T) {
	t.Parallel()
	all := func() []revision {
		return []revision{
			{1, common.StatusSuperseded, "0.1.0", false}, {2, common.StatusFailed, "0.1.1", false}, {3, common.StatusSuperseded, "0.1.2", false},
			{4, common.StatusFailed, "0.2.0", false}, {5, common.StatusDeployed, "0.2.0", false},
		}
	}
	for _, c := range []struct {
		name   string
		all    []revision
		wanted int
		want   int
		err    string
	}{
		{"the newest that worked", all(), 0, 3, ""},
		{"not the same once more", []revision{{1, common.StatusSuperseded, "0.1.0", false}, {2, common.StatusSuperseded, "0.2.0", true}, {3, common.StatusFailed, "0.3.0", false}, {4, common.StatusDeployed, "0.2.0", true}}, 0, 1, ""},
		{"a chosen one", all(), 1, 1, ""},
		{"one that failed", all(), 2, 0, "revision 2"},
		{"the current one", all(), 5, 0, "revision 5"},
		{"only one", []revision{{1, common.StatusDeployed, "0.1.0", false}}, 0, 0, "no earlier revision"},
		{"none", nil, 0, 0, "no earlier revision"},
	} {
		got, err := rollbackTarget(c.all, c.wanted)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %d, %v", c.name, got, err)
		}
	}
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{{"0.1.0", "0.2.0", true}, {"0.2.0", "0.1.9", false}, {"v0.1.0", "0.1.0", false}, {"devel", "0.1.0", false}, {"0.1.0", "", false}} {
		if got := older(c.a, c.b); got != c.want {
			t.Errorf("older(%q, %q) = %v", c.a, c.b, got)
		}
	}
}

func TestOverlay(t *testing.T) {
	t.Parallel()
	base := map[string]any{"a": 1, "m": map[string]any{"x": 1, "y": 2}}
	got := overlay(base, map[string]any{"m": map[string]any{"y": 3}, "b": 4})
	want := map[string]any{"a": 1, "b": 4, "m": map[string]any{"x": 1, "y": 3}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if base["m"].(map[string]any)["y"] != 2 {
		t.Error("the base was changed")
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	got := documents("---\na: 1\n--- # two\nb: |\n  x---y\n---\n\n---\nc: 3\n")
	var trimmed []string
	for _, d := range got {
		trimmed = append(trimmed, strings.TrimSpace(d))
	}
	if d := cmp.Diff([]string{"a: 1", "b: |\n  x---y", "c: 3"}, trimmed); d != "" {
		t.Error(d)
	}
}

// What is installed is rendered from the embedded charts without a cluster, with the
// workloads that are then waited for; what is not valid is refused with its field.
func TestRender(t *testing.T) {
	t.Parallel()
	i := &Installer{Cluster: &Cluster{Namespace: "mesh"}}
	manifest, err := i.Render(t.Context(), ValueFlags{Platform: "k3s", Set: []string{"global.hub=example.test/culvert"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"example.test/culvert/ztunnel:", "/var/lib/rancher/k3s"} {
		if !strings.Contains(manifest, want) {
			t.Errorf("the manifest has no %s", want)
		}
	}
	want := []Workload{{"DaemonSet", "mesh", agentName}, {"DaemonSet", "mesh", proxyName}, {"Deployment", "mesh", controlName}}
	if d := cmp.Diff(want, workloadsOf(manifest, "mesh")); d != "" {
		t.Error(d)
	}
}

// Who comes second leaves alone what the first does.
func TestAtWork(t *testing.T) {
	t.Parallel()
	err := explain("upgrade", fmt.Errorf("create: %w", driver.ErrReleaseExists))
	var hint *laptop.HintError
	if !errors.Is(err, errAtWork) || !errors.As(err, &hint) {
		t.Errorf("%v, hint %v", err, hint)
	}
}

func TestWrongValues(t *testing.T) {
	t.Parallel()
	i := &Installer{Cluster: &Cluster{Namespace: "mesh"}}
	for _, c := range []struct {
		name  string
		flags ValueFlags
		want  string
	}{
		{"unknown value", ValueFlags{Set: []string{"global.hubb=x"}}, "hubb"},
		{"unknown value of a part", ValueFlags{Set: []string{"ztunnel.logLevel=debug"}}, "ztunnel: additional properties 'logLevel' not allowed"},
		{"wrong kind", ValueFlags{Set: []string{"global.hub.x=1"}}, "global.hub"},
		{"unknown profile", ValueFlags{Profile: "nope"}, "nope"},
		{"unknown platform", ValueFlags{Platform: "nope"}, "global.platform"},
		{"no such file", ValueFlags{Files: []string{"testdata/nothing.yaml"}}, "testdata/nothing.yaml"},
		{"no value", ValueFlags{Set: []string{"global"}}, "global"},
	} {
		_, err := i.Render(t.Context(), c.flags)
		var hint *laptop.HintError
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &hint) || hint.Hint == "" {
			t.Errorf("%s: %v, hint %+v", c.name, err, hint)
		}
	}
}

func TestWaypointManifest(t *testing.T) {
	t.Parallel()
	got, err := Waypoint{Namespace: "shop", Name: "waypoint", For: "all"}.YAML()
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  labels:
    istio.io/waypoint-for: all
  name: waypoint
  namespace: shop
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := (Waypoint{Name: "w", For: "pods"}).YAML(); err == nil {
		t.Error("traffic that there is not was taken")
	}
}

// The Job gets an image that is known to start.
func TestImageThere(t *testing.T) {
	t.Parallel()
	agent := func(image string, ready corev1.ConditionStatus) corev1.Pod {
		return corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: image}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
	}
	good, bad := agent("hub/cni:1", corev1.ConditionTrue), agent("hub/cni:missing", corev1.ConditionFalse)
	other := agent("hub/cni:2", corev1.ConditionTrue)
	for _, c := range []struct {
		agents []corev1.Pod
		here   corev1.Pod
		want   string
	}{{[]corev1.Pod{other, good}, good, "hub/cni:1"}, {[]corev1.Pod{bad, other}, bad, "hub/cni:2"}, {[]corev1.Pod{bad}, bad, ""}} {
		if got := imageThere(c.agents, c.here); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// The Job that cleans a node is the agent's pod, told to take everything off.
func TestCleanJob(t *testing.T) {
	t.Parallel()
	agent := &appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		ServiceAccountName: agentName, HostNetwork: true,
		NodeSelector: map[string]string{"a": "b"},
		Containers: []corev1.Container{
			{Name: "agent", Image: "hub/cni:1", Args: []string{"--kube"}, ReadinessProbe: &corev1.Probe{}},
			{Name: "more"},
		},
	}}}}
	job := cleanJob(agent, "node.one.example")
	spec := job.Spec.Template.Spec
	c := spec.Containers
	switch {
	case job.Name != "culvert-clean-node-one-example", !*job.Spec.Suspend:
		t.Errorf("%s, suspended %v", job.Name, *job.Spec.Suspend)
	case spec.NodeName != "node.one.example", spec.NodeSelector != nil, spec.RestartPolicy != corev1.RestartPolicyNever:
		t.Errorf("%+v", spec)
	case len(c) != 1 || c[0].Image != "hub/cni:1" || c[0].ReadinessProbe != nil:
		t.Errorf("%+v", c)
	case !cmp.Equal(c[0].Args, []string{"--kube", "--uninstall"}):
		t.Errorf("%q", c[0].Args)
	case len(agent.Spec.Template.Spec.Containers[0].Args) != 1:
		t.Error("the DaemonSet was changed")
	}
	if len(jobName(strings.Repeat("long.", 40))) > 63 {
		t.Error("the name of a Job's pods would be too long")
	}
}
