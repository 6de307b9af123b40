package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/folder"
)

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      containers:
      - {name: echo, image: culvert/echo, ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: legacy, namespace: shop}
spec:
  nodeName: node-2
  containers: [{name: echo, image: culvert/echo}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: culvert-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`

// load decodes YAML as it comes from a user's folder.
func load(t *testing.T, yaml string, prev *Objects) *Objects {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	objs, problems := Decode(folder.Load(folder.Layers{Base: []string{dir}}), prev)
	for _, p := range problems {
		t.Log(p)
	}
	return objs
}

// settle reports every pod ready and every stopped one gone until nothing changes.
func settle(t *testing.T, c *Cluster) {
	t.Helper()
	for range 20 {
		ch := c.Sync()
		for _, p := range ch.Start {
			c.Report(p.UID, Status{Running: true, Ready: true})
		}
		for _, p := range ch.Stop {
			c.Gone(p.UID)
		}
		if len(ch.Start)+len(ch.Stop) == 0 {
			return
		}
	}
	t.Fatal("the cluster never settles")
}

func TestSync(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1", "node-2"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	var names []string
	nodes := map[string]int{}
	for _, p := range c.Pods() {
		names = append(names, p.Name.Name)
		if p.Owner.Name == "cart" {
			nodes[p.Node]++
		}
	}
	if len(names) != 4 || c.Pod(Name{"shop", "legacy"}).Node != "node-2" {
		t.Errorf("pods %q", names)
	}
	if nodes["node-1"] != 1 || nodes["node-2"] != 1 {
		t.Errorf("the Deployment's pods are on %v", nodes)
	}
	if p := c.Problems(); len(p) > 0 {
		t.Errorf("problems %q", p)
	}
}

// TestRollout: the number of ready pods never falls below what is asked for.
func TestRollout(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1", "node-2"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	c.Set(load(t, strings.Replace(shop, "labels: {app: cart}}", "labels: {app: cart, v: two}}", 1), nil))
	ch := c.Sync()
	if len(ch.Start) != 2 || len(ch.Stop) != 0 {
		t.Fatalf("first: start %d, stop %d; want 2, 0", len(ch.Start), len(ch.Stop))
	}
	c.Report(ch.Start[0].UID, Status{Running: true, Ready: true})
	if next := c.Sync(); len(next.Start) != 0 || len(next.Stop) != 1 {
		t.Fatalf("one ready: start %d, stop %d; want 0, 1", len(next.Start), len(next.Stop))
	}
	c.Report(ch.Start[1].UID, Status{Running: true, Ready: true})
	if next := c.Sync(); len(next.Stop) != 1 {
		t.Fatalf("both ready: stop %d, want 1", len(next.Stop))
	}
}

func TestRestartAndScaleAndDelete(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	if !c.RestartDeployment(Name{"shop", "waypoint"}) || c.RestartDeployment(Name{"shop", "nothing"}) {
		t.Error("RestartDeployment")
	}
	if ch := c.Sync(); len(ch.Start) != 1 || ch.Start[0].Owner.Name != "waypoint" {
		t.Errorf("restart started %v", ch.Start)
	}
	settle(t, c)
	c.Set(load(t, strings.Replace(shop, "replicas: 2", "replicas: 0", 1), nil))
	settle(t, c)
	if n := len(c.Pods()); n != 3 && n != 2 {
		t.Errorf("%d pods after scaling to none", n)
	}
	c.Set(load(t, "", nil))
	settle(t, c)
	if n := len(c.Pods()); n != 0 {
		t.Errorf("%d pods of no objects", n)
	}
}

func TestUnknownNode(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0], `no node "node-2"`) {
		t.Errorf("problems %q", p)
	}
}

// TestIdleKinds: what would make pods elsewhere and makes none here is told.
func TestIdleKinds(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1", "node-2"})
	c.Set(load(t, "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: shop}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n", nil))
	settle(t, c)
	if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0], "x.yaml:2: StatefulSet") || !strings.Contains(p[0], "not supported") {
		t.Errorf("problems %q", p)
	}
}

// TestBadObjectKeepsItsLastForm: one object that no longer decodes changes nothing.
func TestBadObjectKeepsItsLastForm(t *testing.T) {
	t.Parallel()
	good := load(t, shop, nil)
	bad := load(t, strings.Replace(shop, "replicas: 2", "replicas: many", 1), good)
	if bad.Deployments[Name{"shop", "cart"}] != good.Deployments[Name{"shop", "cart"}] {
		t.Error("the Deployment is not what it was")
	}
}

func TestVIPsAndZone(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1", "node-2"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	text := c.VIPs().Text()
	want := "shop/cart 10.96.1.0:80/tcp -> "
	if !strings.Contains(text, want) || strings.Contains(text, want+"refused") || !strings.Contains(text, "shop/waypoint 10.96.1.1:15008/tcp") {
		t.Errorf("virtual addresses:\n%s", text)
	}
	if names := c.Zone("cluster.local").Names(); !slices.Contains(names, "cart.shop.svc.cluster.local.") {
		t.Errorf("names %q", names)
	}
	for _, p := range c.Pods() {
		c.Report(p.UID, Status{Running: true})
	}
	if text := c.VIPs().Text(); !strings.Contains(text, want+"refused") {
		t.Errorf("with no pod ready:\n%s", text)
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	c := New([]string{"node-1", "node-2"})
	c.Set(load(t, shop, nil))
	settle(t, c)
	base, objects, patches := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "shop.yaml"), []byte(shop), 0o644); err != nil {
		t.Fatal(err)
	}
	o, p := NewFolder(objects), NewFolder(patches)
	write := func() *folder.Snapshot {
		if err := o.Write(c.Objects()); err != nil {
			t.Fatal(err)
		}
		if err := p.Write(c.Patches()); err != nil {
			t.Fatal(err)
		}
		return folder.Load(folder.Layers{Base: []string{base}, Objects: []string{objects}, Patches: []string{patches}})
	}
	snap := write()
	for _, problem := range snap.Problems {
		t.Error(problem)
	}
	merged, problems := Decode(snap, nil)
	if len(problems) > 0 || len(merged.Pods) != 4 {
		t.Errorf("%d pods, problems %v", len(merged.Pods), problems)
	}
	legacy := merged.Pods[Name{"shop", "legacy"}]
	if legacy.Status.PodIP == "" || legacy.Spec.NodeName != "node-2" || string(legacy.UID) == "" || len(legacy.Spec.Containers) != 1 {
		t.Errorf("legacy merged: %+v", legacy)
	}
	if ip := merged.Services[Name{"shop", "cart"}].Spec.ClusterIP; ip != "10.96.1.0" {
		t.Errorf("clusterIP %q", ip)
	}
	if a := merged.Gateways[Name{"shop", "waypoint"}].Status.Addresses; len(a) != 3 {
		t.Errorf("gateway addresses %v", a)
	}
	c.Set(load(t, "", nil))
	settle(t, c)
	write()
	left, err := os.ReadDir(objects)
	if err != nil || len(left) != 2 { // the nodes
		t.Errorf("left %v, %v", left, err)
	}
}
