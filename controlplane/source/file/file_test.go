package file

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// TestObjectByObject: a mistake in one object of a file leaves its last good
// version alone, and lets the other objects of the file change.
func TestObjectByObject(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f.yaml")
	doc := func(name, field string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec:\n  ports:\n  - " + field + "\n---\n"
	}
	put(t, path, doc("a", "port: 80")+doc("b", "port: 80"))
	ctx, cancel := context.WithCancel(context.Background())
	updates, done := make(chan source.Update, 16), make(chan error, 1)
	go func() {
		done <- New(folder.Layers{Base: []string{dir}}, "", nil).Run(ctx, func(u source.Update) { updates <- u })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	next := func() source.Update {
		select {
		case u := <-updates:
			return u
		case <-time.After(2 * time.Minute):
			t.Fatal("no update")
		}
		return source.Update{}
	}
	if u := next(); len(u.Set) != 2 || len(u.Problems) != 0 {
		t.Fatalf("first: %+v", u)
	}
	put(t, path, doc("a", "prot: 81")+doc("b", "port: 81"))
	u := next()
	if len(u.Set) != 1 || u.Set[0].Key().Name != "b" || len(u.Removed) != 0 || len(u.Problems) != 1 {
		t.Fatalf("one bad: %+v", u)
	}
	if p := u.Problems[0]; p.Object != "Service/default/a" || p.Field != "spec.ports[0].prot" || p.Line != 6 || p.Reason != reason.UnknownField || p.File != path {
		t.Errorf("problem %+v", p)
	}
	put(t, path, doc("b", "port: 81"))
	if u := next(); len(u.Removed) != 1 || u.Removed[0].Name != "a" || len(u.Problems) != 0 {
		t.Errorf("removed: %+v", u)
	}
}

func TestMeaning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "f.yaml"), `apiVersion: v1
kind: Pod
metadata:
  name: p
  namespace: shop
  creationTimestamp: 2026-01-02T03:04:05Z
  deletionTimestamp: "2026-01-02T03:04:05Z"
  ownerReferences:
  - {apiVersion: v1, kind: Node, name: n, uid: "1"}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: "2", controller: true}
spec:
  containers:
  - {name: c, resources: {limits: {cpu: 100m, memory: 1Gi}}, livenessProbe: {httpGet: {port: web}}, ports: [{name: web, containerPort: 80}]}
status:
  podIP: 10.0.0.1
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  containers:
  - name: c
    resources: {limits: {cpu: plenty}}
`)
	u := Decode(folder.Load(folder.Layers{Base: []string{dir}}))
	if len(u.Set) != 1 || len(u.Problems) != 1 {
		t.Fatalf("%+v", u)
	}
	p := u.Set[0].(*source.Pod)
	if !p.Terminating || !p.Ready || p.ServiceAccount != "default" || p.Owner != (source.Owner{Kind: "ReplicaSet", Name: "rs"}) ||
		p.Created.Year() != 2026 || len(p.IPs) != 1 || len(p.Ports) != 1 || p.Ports[0].Protocol != "TCP" {
		t.Errorf("pod %+v", p)
	}
	if got := u.Problems[0]; got.Field != "spec.containers[0].resources.limits.cpu" || got.Line != 24 {
		t.Errorf("problem %+v", got)
	}
}
