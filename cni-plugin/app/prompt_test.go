package app

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/install"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

// waiting puts a pod there that has no network yet.
func (w *world) waiting(uid string) {
	w.write("pod-"+uid, `apiVersion: v1
kind: Pod
metadata: {name: cart-`+uid+`, namespace: shop, uid: `+uid+`}
spec: {nodeName: node-1, serviceAccountName: cart, containers: [{name: cart}]}
status: {phase: Pending}
`)
}

// A pod whose runtime found no agent changes when it can be started, and no sooner;
// one that came later is asked for anyway.
func TestMissedPodIsPrompted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.waiting("missed")
	w.start()
	w.waiting("later")
	w.await("both are known", func() bool { return w.state("later") == "out" })
	if got := w.annotation("missed"); got != "" {
		t.Errorf("annotation %q while there is no ztunnel", got)
	}
	w.ztunnel()
	w.await("the pod is prompted", func() bool { return w.annotation("missed") == enroll.RedirectionPending })
	_, path := w.sandbox("missed")
	if code, text := w.cmdAdd("missed", path); code != 200 {
		t.Fatalf("cmdadd: %d %s", code, text)
	}
	if got := w.annotation("missed"); got != enroll.RedirectionEnabled {
		t.Errorf("annotation %q of the pod that has started", got)
	}
	if got := w.annotation("later"); got != "" {
		t.Errorf("annotation %q of a pod that nobody missed", got)
	}
}

func TestUninstall(t *testing.T) {
	t.Parallel()
	netnstest.RequireRoot(t)
	dir := t.TempDir()
	cfg := Config{Socket: filepath.Join(dir, "s"), Eligibility: filepath.Join(dir, "e"), Proc: filepath.Join(dir, "proc"), Mounts: filepath.Join(dir, "netns"), CNI: install.Config{
		Folder: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Binary: filepath.Join(dir, "culvert-cni")}}
	const before = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`
	list, program := filepath.Join(cfg.CNI.Folder, "10-net.conflist"), filepath.Join(cfg.CNI.BinDir, "culvert-cni")
	if err := writeFile(list, []byte(before)); err != nil {
		t.Fatal(err)
	}
	entry, err := install.Install([]install.File{{Name: "10-net.conflist", Content: []byte(before)}}, install.Options{Entry: []byte(`{"type":"culvert-cni"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := install.Apply(cfg.CNI.Folder, entry); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(program, []byte("program")); err != nil {
		t.Fatal(err)
	}
	pod, err := netns.New(filepath.Join(cfg.Mounts, "cni-1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close(); netns.Delete(filepath.Join(cfg.Mounts, "cni-1")) })
	if err := errors.Join(redirect.Apply(pod, redirect.Pod(redirect.Options{})), writeFile(cfg.Eligibility, nil),
		os.MkdirAll(filepath.Join(cfg.Proc, "1", "ns"), 0o755), os.Symlink("net:[1]", filepath.Join(cfg.Proc, "1", "ns", "net"))); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := uninstall(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	if applied, err := redirect.Applied(pod); err != nil || applied {
		t.Errorf("the pod has rules still: %v, %v", applied, err)
	}
	if _, err := os.Stat(cfg.Eligibility); !os.IsNotExist(err) {
		t.Errorf("the eligibility file: %v", err)
	}
	if content, err := os.ReadFile(list); err != nil || strings.Contains(string(content), "culvert") {
		t.Errorf("configuration %s, %v", content, err)
	}
	if _, err := os.Stat(program); !os.IsNotExist(err) {
		t.Errorf("the program: %v", err)
	}
}
