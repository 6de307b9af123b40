//go:build kube

package installed

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFromPrevious: a mesh that an earlier culvert has installed, from its own images
// and charts, is upgraded by this one, taken back and upgraded again under load, and
// nothing is lost. CULVERT_PREVIOUS is a folder with that culvert's program and, in
// images/, its images with the tag "previous": make test-upgrade FROM=COMMIT.
func TestFromPrevious(t *testing.T) {
	previous := os.Getenv("CULVERT_PREVIOUS")
	if previous == "" {
		t.Skip("CULVERT_PREVIOUS names no earlier version")
	}
	archives, err := filepath.Glob(filepath.Join(previous, "images", "*.tar"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no images below %s: %v", previous, err)
	}
	if loaded := run(the.kube, append([]string{"load"}, archives...)...); loaded.err != nil {
		t.Fatal(loaded.err)
	}
	culvert(t, "uninstall", "--purge", "--timeout", limit.String())
	if r := run(filepath.Join(previous, "culvert"), "install", "--set", "global.tag=previous", "--timeout", limit.String()); r.err != nil {
		t.Fatal(r.err)
	}
	joinShop(t)
	load := startLoad(t)
	for _, step := range []struct {
		args []string
		tag  string // that runs afterwards
	}{
		{[]string{"upgrade", "--set", "global.tag=0.1.0"}, "0.1.0"},
		{[]string{"upgrade", "--rollback"}, "previous"},
		{[]string{"upgrade", "--set", "global.tag=0.1.0"}, "0.1.0"},
	} {
		start := time.Now()
		out := culvert(t, append(step.args, "--timeout", (2*limit).String())...)
		t.Logf("culvert %s: %.1f s\n%s", strings.Join(step.args, " "), time.Since(start).Seconds(), out)
		awaitTag(t, step.tag)
		load.check(t)
	}
	eventually(t, "check", func() error { return run(the.culvert, "check").err })
	load.stop(t)
	culvert(t, "uninstall", "--purge", "--timeout", limit.String())
}

// joinShop makes the shop, when it is not there, and waits until its pods are in the mesh.
func joinShop(t *testing.T) {
	t.Helper()
	apply(t, shop+pod("web", "node2")+pod("web-v2", "node2")+pod("client", "node1", "pause")+pod("other", "node1", "pause"))
	must(t, "label", "namespace", namespace, "istio.io/dataplane-mode=ambient", "istio.io/use-waypoint-", "--overwrite")
	must(t, "wait", "-n", namespace, "--for=condition=Ready", "pods", "--all", "--timeout=60s")
	for _, name := range []string{"client", "other", "web", "web-v2"} {
		eventually(t, name+" is in the mesh", func() error {
			state := must(t, "get", "pod", "-n", namespace, name, "-o", `jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}`)
			if state != "enabled" {
				return errors.New("annotation " + state)
			}
			return nil
		})
	}
}

// awaitTag waits until every program of the mesh that is not ending is of that tag.
func awaitTag(t *testing.T, tag string) {
	t.Helper()
	eventually(t, "all programs are "+tag, func() error {
		running := must(t, "get", "pods", "-n", system, "-o",
			`go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{(index .spec.containers 0).image}} {{end}}{{end}}`)
		images := strings.Fields(running)
		other := slices.ContainsFunc(images, func(image string) bool { return !strings.HasSuffix(image, ":"+tag) })
		if len(images) < 5 || other {
			return errors.New("there are " + running)
		}
		return nil
	})
}
