package folder

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes as careful programs do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	write(t, path+".tmp", content)
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

const pod = `apiVersion: v1
kind: Pod
metadata:
  name: cart
  namespace: shop
  labels: {app: cart}
spec:
  nodeName: node-1
`

func object(t *testing.T, s *Snapshot, key string) *Object {
	t.Helper()
	for k, o := range s.Objects {
		if k.String() == key {
			return o
		}
	}
	t.Fatalf("no object %s in %v", key, s.Objects)
	return nil
}

func text(t *testing.T, o *Object) string {
	t.Helper()
	b, err := o.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLayers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := Layers{Base: []string{dir + "/base"}, Objects: []string{dir + "/objects"}, Patches: []string{dir + "/patches"}}
	write(t, dir+"/base/sub/pod.yaml", pod)
	write(t, dir+"/base/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: bare}\n")
	write(t, dir+"/objects/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nspec: {nodeName: node-2}\nstatus: {podIP: 10.0.0.1}\n")
	write(t, dir+"/patches/node-1/a.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"cart","namespace":"shop","annotations":{"a":"b"},"labels":{"app":null}}}`)
	write(t, dir+"/patches/node-1/ghost.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: ghost}\nspec: {x: 1}\n")
	write(t, dir+"/base/.hidden.yaml", "!!")
	write(t, dir+"/base/pod.yaml~", "!!")

	s := Load(l)
	if len(s.Problems) != 0 {
		t.Fatal(s.Problems)
	}
	if got := len(s.Objects); got != 3 {
		t.Fatalf("%d objects: %v", got, s.Changed)
	}
	object(t, s, "Pod/default/bare")
	o := object(t, s, "Pod/shop/cart")
	const want = `{"apiVersion":"v1","kind":"Pod","metadata":{"annotations":{"a":"b"},"labels":{},"name":"cart","namespace":"shop"},"spec":{"nodeName":"node-2"},"status":{"podIP":"10.0.0.1"}}`
	if got := text(t, o); got != want {
		t.Errorf("merged\n%s\nwant\n%s", got, want)
	}
	for path, want := range map[string]string{
		"spec.nodeName":          dir + "/objects/pod.yaml:4",
		"metadata.annotations.a": dir + "/patches/node-1/a.json:1",
		"metadata.labels":        dir + "/base/sub/pod.yaml:6",
		"metadata.nothing.there": dir + "/base/sub/pod.yaml:3",
	} {
		file, line := o.Locate(path)
		if got := fmt.Sprintf("%s:%d", file, line); got != want {
			t.Errorf("Locate(%s) = %s, want %s", path, got, want)
		}
	}
}

func TestParseProblems(t *testing.T) {
	t.Parallel()
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 10))
	}
	for name, c := range map[string]struct {
		yaml   string
		line   int
		field  string
		reason reason.Reason
		detail string
	}{
		"syntax":       {"kind: Pod\napiVersion: v1\nmetadata: [\n", 3, "", reason.MalformedYAML, ""},
		"tab":          {"kind: Pod\n\tapiVersion: v1\n", 2, "", reason.MalformedYAML, ""},
		"scalar":       {"hello\n", 1, "", reason.MalformedYAML, "must be an object"},
		"no kind":      {"# c\napiVersion: v1\nmetadata: {name: x}\n", 2, "kind", reason.MissingField, ""},
		"no metadata":  {"apiVersion: v1\nkind: Pod\n", 1, "metadata", reason.MissingField, ""},
		"no name":      {"apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {}\n", 4, "metadata.name", reason.MissingField, ""},
		"number name":  {"apiVersion: v1\nkind: Pod\nmetadata:\n  name: 7\n", 4, "metadata.name", reason.InvalidValue, "string"},
		"given twice":  {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  a: 1\n  a: 2\n", 6, "", reason.MalformedYAML, `"a" is given twice`},
		"self anchor":  {"apiVersion: v1\nkind: Pod\nmetadata: &m\n  name: x\n  m: *m\n", 3, "", reason.MalformedYAML, "nested deeper"},
		"bomb":         {bomb, 0, "", reason.MalformedYAML, "more than"},
		"second wrong": {pod + "---\nkind: Pod\n", 10, "apiVersion", reason.MissingField, ""},
	} {
		objects, problems := Parse("f.yaml", []byte(c.yaml))
		if len(problems) == 0 || objects != nil {
			t.Errorf("%s: objects %v, problems %v", name, objects, problems)
			continue
		}
		p := problems[0]
		if c.line != 0 && p.Line != c.line || p.Field != c.field || p.Reason != c.reason || !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%s: %+v, want line %d field %q reason %q detail %q", name, p, c.line, c.field, c.reason, c.detail)
		}
	}
}

func TestAnchorsAndLists(t *testing.T) {
	t.Parallel()
	objects, problems := Parse("f.yaml", []byte(`apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a, labels: &l {x: "1", y: "2"}}
- apiVersion: v1
  kind: Pod
  metadata:
    name: b
    labels:
      <<: *l
      y: "3"
    at: 2026-01-02T03:04:05Z
    big: 18446744073709551615
    f: 1.5
`))
	if len(problems) > 0 || len(objects) != 2 {
		t.Fatal(objects, problems)
	}
	const want = `{"apiVersion":"v1","kind":"Pod","metadata":{"at":"2026-01-02T03:04:05Z","big":18446744073709551615,"f":1.5,"labels":{"x":"1","y":"3"},"name":"b"}}`
	if got := text(t, objects[1]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// start runs a watcher and returns its snapshots.
func start(t *testing.T, l Layers) <-chan *Snapshot {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan *Snapshot), make(chan error, 1)
	w := NewWatcher(Config{Layers: l})
	go func() {
		done <- w.Run(ctx, func(s *Snapshot) {
			select {
			case out <- s:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return out
}

// await returns the first snapshot that holds cond.
func await(t *testing.T, snaps <-chan *Snapshot, what string, cond func(*Snapshot) bool) *Snapshot {
	t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case s := <-snaps:
			if cond(s) {
				return s
			}
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := Layers{Base: []string{dir + "/base"}, Patches: []string{dir + "/later"}}
	write(t, dir+"/base/pod.yaml", pod)
	snaps := start(t, l)
	await(t, snaps, "first", func(s *Snapshot) bool { return len(s.Objects) == 1 && len(s.Changed) == 1 })

	replace(t, dir+"/base/pod.yaml", strings.Replace(pod, "node-1", "node-2", 1))
	await(t, snaps, "edit", func(s *Snapshot) bool { return strings.Contains(text(t, object(t, s, "Pod/shop/cart")), "node-2") })

	write(t, dir+"/base/pod.yaml", "kind: [\n")
	s := await(t, snaps, "bad file", func(s *Snapshot) bool { return len(s.Problems) == 1 })
	if p := s.Problems[0]; p.File != dir+"/base/pod.yaml" || p.Line == 0 || p.Reason != reason.MalformedYAML {
		t.Errorf("problem %+v", p)
	}
	object(t, s, "Pod/shop/cart") // the last good content

	write(t, dir+"/base/other.yaml", strings.ReplaceAll(pod, "cart", "other"))
	s = await(t, snaps, "a good file beside it", func(s *Snapshot) bool { return len(s.Objects) == 2 })
	if len(s.Problems) != 1 {
		t.Errorf("problems %v", s.Problems)
	}

	write(t, dir+"/base/pod.yaml", pod)
	await(t, snaps, "repaired", func(s *Snapshot) bool {
		return len(s.Problems) == 0 && strings.Contains(text(t, object(t, s, "Pod/shop/cart")), "node-1")
	})

	write(t, dir+"/later/x/p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, annotations: {k: v}}\n")
	await(t, snaps, "a folder that appears", func(s *Snapshot) bool { return strings.Contains(text(t, object(t, s, "Pod/shop/cart")), `"k":"v"`) })

	write(t, dir+"/base/dup.yaml", pod)
	s = await(t, snaps, "duplicate", func(s *Snapshot) bool { return len(s.Problems) == 1 })
	if p := s.Problems[0]; p.Reason != reason.DuplicateObject || p.File != dir+"/base/pod.yaml" {
		t.Errorf("problem %v", p)
	}
	if err := os.RemoveAll(dir + "/base"); err != nil {
		t.Fatal(err)
	}
	await(t, snaps, "removal", func(s *Snapshot) bool { return len(s.Objects) == 0 && len(s.Problems) == 0 })
}

// A user's folder that is moved away does not end everything that was in it.
func TestFolderMovedAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/base/pod.yaml", pod)
	snaps := start(t, Layers{Base: []string{dir + "/base"}})
	await(t, snaps, "first", func(s *Snapshot) bool { return len(s.Objects) == 1 })
	if err := os.Rename(dir+"/base", dir+"/moved"); err != nil {
		t.Fatal(err)
	}
	s := await(t, snaps, "the loss", func(s *Snapshot) bool { return len(s.Problems) == 1 })
	if p := s.Problems[0]; p.Reason != reason.TargetNotFound || p.File != dir+"/base" || len(s.Objects) != 1 {
		t.Errorf("%v, %d objects", p, len(s.Objects))
	}
	if err := os.Rename(dir+"/moved", dir+"/base"); err != nil {
		t.Fatal(err)
	}
	await(t, snaps, "the return", func(s *Snapshot) bool { return len(s.Problems) == 0 && len(s.Objects) == 1 })
	write(t, dir+"/base/other.yaml", strings.ReplaceAll(pod, "cart", "other"))
	await(t, snaps, "another file", func(s *Snapshot) bool { return len(s.Objects) == 2 })
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(pod))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("{apiVersion: v1, kind: List, items: [{}]}"))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x, <<: {a: 1}, t: 2001-01-01, f: .inf, i: 0x1F}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		objects, problems := Parse("f.yaml", content)
		if len(objects) > 0 && len(problems) > 0 {
			t.Fatal("objects beside problems")
		}
		for _, o := range objects {
			b, err := o.JSON()
			if err == nil && !json.Valid(b) {
				t.Fatalf("%s is not JSON", b)
			}
			if !equal(o.Node, o.Node) {
				t.Fatal("not equal to itself")
			}
		}
	})
}

// BenchmarkChange measures one file's change among 10,000, from its renaming into
// place to the snapshot.
func BenchmarkChange(b *testing.B) {
	dir := b.TempDir()
	for i := range 10_000 {
		path := fmt.Sprintf("%s/pod-%d.yaml", dir, i)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(pod, "cart", fmt.Sprint("pod-", i))), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	snaps, done := make(chan *Snapshot, 16), make(chan error, 1)
	go func() {
		done <- NewWatcher(Config{Layers: Layers{Objects: []string{dir}}}).Run(ctx, func(s *Snapshot) { snaps <- s })
	}()
	<-snaps
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint("pod-", i%10_000)
		content := strings.ReplaceAll(pod, "cart", name) + fmt.Sprintf("  hostname: h%d\n", i)
		if err := os.WriteFile(dir+"/new", []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(dir+"/new", dir+"/"+name+".yaml"); err != nil {
			b.Fatal(err)
		}
		if s := <-snaps; len(s.Changed) != 1 {
			b.Fatal(s.Changed)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
