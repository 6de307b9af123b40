package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/cni-plugin/eligible"
	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/zds"
)

// world is a node's folders, and an agent on them that can be restarted.
type world struct {
	t     *testing.T
	cfg   Config
	stop  func()
	agent *Agent
	told  told
}

func newWorld(t *testing.T) *world {
	t.Helper()
	netnstest.RequireRoot(t)
	dir := t.TempDir()
	w := &world{t: t, cfg: Config{
		Node: "node-1", Socket: filepath.Join(dir, "agent.sock"), ZDS: filepath.Join(dir, "zds.sock"),
		Objects: []string{filepath.Join(dir, "objects")}, PatchesOut: filepath.Join(dir, "patches"),
		NetnsDir: filepath.Join(dir, "netns"), Eligibility: filepath.Join(dir, "eligibility.json"),
		Enroll: enroll.DefaultConfig(), DrainGrace: time.Millisecond,
	}}
	for _, d := range []string{w.cfg.Objects[0], w.cfg.PatchesOut, w.cfg.NetnsDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// start runs the agent until the returned function is called or the test ends.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	layers := folder.Layers{Objects: w.cfg.Objects, Patches: []string{w.cfg.PatchesOut}}
	w.agent = New(w.cfg, Parts{Source: podsource.NewFolders(w.cfg.Node, layers, log), Finder: podns.Dir(w.cfg.NetnsDir), Events: &w.told, Metrics: NewMetrics(reg), Log: log})
	h := &server{agent: w.agent, metrics: http.NotFoundHandler()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.agent.Run(ctx); err != nil {
			w.t.Errorf("agent: %v", err)
		}
	})
	wg.Go(func() {
		if err := h.runUnix(ctx); err != nil {
			w.t.Errorf("http: %v", err)
		}
	})
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(w.stop)
	w.await("the agent is ready", w.agent.Ready)
	w.await("the socket is there", func() bool { _, err := os.Stat(w.cfg.Socket); return err == nil })
}

func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited in vain: %s; status %+v", what, w.agent.Status())
		}
	}
}

// write puts an object into the folder.
func (w *world) write(name, yaml string) {
	w.t.Helper()
	if err := writeFile(filepath.Join(w.cfg.Objects[0], name+".yaml"), []byte(yaml)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) erase(name string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.cfg.Objects[0], name+".yaml")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) namespace(mode string) {
	w.write("ns", fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: %s}}\n", mode))
}

func (w *world) pod(uid, extra string) {
	w.write("pod-"+uid, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: cart-%[1]s, namespace: shop, uid: %[1]s%[2]s}
spec:
  nodeName: node-1
  serviceAccountName: cart
  containers: [{name: cart, readinessProbe: {tcpSocket: {port: 8080}}}]
status: {phase: Running, podIP: 127.0.0.1}
`, uid, extra))
}

// sandbox makes the pod's namespace as a runtime does, and returns its path.
func (w *world) sandbox(uid string) (*netns.NS, string) {
	w.t.Helper()
	path := filepath.Join(w.cfg.NetnsDir, uid)
	ns, err := netns.New(path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ns.Close(); netns.Delete(path) })
	return ns, path
}

// post sends a request to the agent's socket.
func (w *world) post(path string, body any) (int, string) {
	w.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	if text, ok := body.(string); ok {
		raw = []byte(text)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.cfg.Socket)
	}}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Post("http://agent"+path, "application/json", bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func (w *world) cmdAdd(uid, path string) (int, string) {
	w.t.Helper()
	return w.post("/cmdadd", map[string]any{"Netns": path, "PodName": "cart-" + uid, "PodNamespace": "shop",
		"IPs": []any{map[string]any{"Address": map[string]any{"IP": "127.0.0.1", "Mask": []byte{255, 0, 0, 0}}}}})
}

// annotation returns what the patches folder says of the pod.
func (w *world) annotation(uid string) string {
	raw, err := os.ReadFile(filepath.Join(w.cfg.PatchesOut, uid+".yaml"))
	if err != nil {
		return ""
	}
	var p patch
	if err := json.Unmarshal(raw, &p); err != nil {
		w.t.Errorf("patch of %s: %v", uid, err)
	}
	if p.Kind != "Pod" || p.Metadata.Name != "cart-"+uid || p.Metadata.Namespace != "shop" {
		w.t.Errorf("patch of %s names %+v", uid, p)
	}
	return p.Metadata.Annotations[enroll.AnnotationRedirection]
}

func (w *world) captured(ns *netns.NS) bool {
	w.t.Helper()
	on, err := redirect.Applied(ns)
	if err != nil {
		w.t.Fatal(err)
	}
	return on
}

func (w *world) state(uid string) string {
	for _, p := range w.agent.Status().Pods {
		if p.UID == mesh.PodUID(uid) {
			return p.State
		}
	}
	return "unknown"
}

// ztunnel keeps what a ztunnel is told.
type ztunnel struct {
	mu   sync.Mutex
	pods map[mesh.PodUID]netns.ID
	kept map[mesh.PodUID]bool
	done int // snapshots

	named map[mesh.PodUID]bool // since the snapshot began
	full  bool                 // takes no pod
	ruled int                  // how many pods were redirected already when they came
}

func (w *world) ztunnel() *ztunnel {
	return w.run(&ztunnel{pods: map[mesh.PodUID]netns.ID{}, kept: map[mesh.PodUID]bool{}})
}

// run keeps a ztunnel connected until the test ends.
func (w *world) run(z *ztunnel) *ztunnel {
	z, _ = w.connect(z)
	return z
}

// connect keeps a ztunnel connected until the returned function is called or the
// test ends.
func (w *world) connect(z *ztunnel) (*ztunnel, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	c := zds.NewClient(w.cfg.ZDS, z, zds.ClientConfig{MaxBackoff: 20 * time.Millisecond})
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			w.t.Errorf("ztunnel: %v", err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(stop)
	return z, stop
}

func (z *ztunnel) Add(_ context.Context, uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) error {
	defer ns.Close()
	if info.ServiceAccount != "cart" || info.Namespace != "shop" || info.Name != "cart-"+string(uid) {
		return fmt.Errorf("wrong info %+v", info)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.full {
		return errors.New("no room")
	}
	ruled, err := redirect.Applied(ns)
	if err != nil {
		return err
	}
	if ruled {
		z.ruled++
	}
	z.pods[uid] = ns.ID()
	z.named[uid] = true
	return nil
}

func (z *ztunnel) Keep(uid mesh.PodUID) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.kept[uid] = true
	z.named[uid] = true
	return nil
}

func (z *ztunnel) Delete(uid mesh.PodUID) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.pods, uid)
	return nil
}

func (z *ztunnel) Disconnected() {}

func (z *ztunnel) SnapshotBegin() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.named = map[mesh.PodUID]bool{}
}

func (z *ztunnel) SnapshotDone() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.done++
	maps.DeleteFunc(z.pods, func(uid mesh.PodUID, _ netns.ID) bool { return !z.named[uid] })
}

func (z *ztunnel) has() map[mesh.PodUID]netns.ID {
	z.mu.Lock()
	defer z.mu.Unlock()
	return maps.Clone(z.pods)
}

func (z *ztunnel) snapshots() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.done
}

func (z *ztunnel) keeps(uid mesh.PodUID) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.kept[uid]
}

func TestPodStartsInMesh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.start()
	z := w.ztunnel()
	w.await("ztunnel is connected", func() bool { return z.snapshots() > 0 })
	ns, path := w.sandbox("u1")
	w.write("pod-u1", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart-u1, namespace: shop, uid: u1}\nspec: {nodeName: node-1, serviceAccountName: cart}\n")
	if code, text := w.cmdAdd("u1", path); code != http.StatusOK || !strings.Contains(text, `"inMesh":true`) {
		t.Fatalf("cmdadd: %d %s", code, text)
	}
	if z.has()["u1"] != ns.ID() {
		t.Errorf("ztunnel has %v, want u1 in %s", z.has(), ns.ID())
	}
	if !w.captured(ns) || w.annotation("u1") != enroll.RedirectionEnabled || w.state("u1") != "enrolled" {
		t.Errorf("rules %v, annotation %q, state %q", w.captured(ns), w.annotation("u1"), w.state("u1"))
	}
	w.erase("pod-u1")
	w.await("the removed pod is forgotten", func() bool { return len(z.has()) == 0 && w.annotation("u1") == "" && len(w.agent.Status().Pods) == 0 })
}

// A pod without a ztunnel does not start, is taken as soon as there is one, and
// says so meanwhile.
func TestNoZtunnelYet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	_, path := w.sandbox("u1")
	w.start()
	code, text := w.cmdAdd("u1", path)
	if code != http.StatusServiceUnavailable || !strings.Contains(text, zds.ErrNoZtunnel.Error()) {
		t.Errorf("cmdadd: %d %s", code, text)
	}
	if w.annotation("u1") != enroll.RedirectionPending || w.state("u1") != "pending" {
		t.Errorf("annotation %q, state %q", w.annotation("u1"), w.state("u1"))
	}
	if !w.agent.Ready() {
		t.Error("the agent's readiness depends on a pod")
	}
	z := w.ztunnel()
	w.await("the pod is enabled", func() bool { return w.annotation("u1") == enroll.RedirectionEnabled && len(z.has()) == 1 })
}

func TestLabelsFlipLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("none")
	w.pod("u1", "")
	w.pod("u2", ", labels: {istio.io/dataplane-mode: none}")
	ns1, _ := w.sandbox("u1")
	ns2, _ := w.sandbox("u2")
	w.start()
	w.namespace("ambient")
	w.await("the pod misses a ztunnel", func() bool { return w.state("u1") == "pending" && w.annotation("u1") == enroll.RedirectionPending })
	if w.captured(ns1) {
		t.Error("a running pod is redirected to a ztunnel that is not there")
	}
	w.namespace("none")
	w.await("the pod is out", func() bool { return w.state("u1") == "out" })
	z := w.ztunnel()
	for range 2 {
		w.namespace("ambient")
		w.await("the pod is in", func() bool {
			return w.annotation("u1") == enroll.RedirectionEnabled && w.state("u1") == "enrolled"
		})
		if z.has()["u1"] != ns1.ID() || !w.captured(ns1) {
			t.Errorf("ztunnel has %v, captured %v", z.has(), w.captured(ns1))
		}
		w.namespace("none")
		w.await("the pod is out", func() bool { return w.state("u1") == "out" })
		if len(z.has()) != 0 || w.captured(ns1) || w.annotation("u1") != "" {
			t.Errorf("after leaving: ztunnel has %v, captured %v, annotation %q", z.has(), w.captured(ns1), w.annotation("u1"))
		}
	}
	w.pod("u2", ", labels: {istio.io/dataplane-mode: ambient}")
	w.await("the labelled pod is in", func() bool { return z.has()["u2"] == ns2.ID() })
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.ruled > 0 {
		t.Errorf("%d pods were redirected before ztunnel had them", z.ruled)
	}
	w.await("the file says who is in", func() bool {
		raw, err := os.ReadFile(w.cfg.Eligibility)
		var e eligible.File
		return err == nil && json.Unmarshal(raw, &e) == nil &&
			e.Pods["shop/cart-u2"].InMesh && !e.Pods["shop/cart-u1"].InMesh && !e.AmbientNamespaces["shop"]
	})
}

// Connections that the rules redirected hold the last of them in place until
// they end, and a change of mind meanwhile brings the pod back.
func TestLeavingWaitsForConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	ns, _ := w.sandbox("u1")
	w.start()
	z := w.ztunnel()
	w.await("the pod is in", func() bool { return w.state("u1") == "enrolled" })
	l, err := ns.Listen(t.Context(), mustAddrPort("127.0.0.1:15001"), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := ns.Dial(t.Context(), mustAddrPort("127.0.0.1:15001"), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	held, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	w.namespace("none")
	w.await("the pod leaves", func() bool { return w.state("u1") == "leaving" })
	if w.annotation("u1") != "" || len(z.has()) != 1 || !w.captured(ns) {
		t.Errorf("while leaving: annotation %q, ztunnel has %v, rules %v", w.annotation("u1"), z.has(), w.captured(ns))
	}
	w.namespace("ambient")
	w.await("the pod is back", func() bool { return w.state("u1") == "enrolled" && w.annotation("u1") == enroll.RedirectionEnabled })
	w.namespace("none")
	w.await("the pod leaves again", func() bool { return w.state("u1") == "leaving" })
	held.Close()
	c.Close()
	w.await("the pod is out", func() bool { return w.state("u1") == "out" && !w.captured(ns) && len(z.has()) == 0 })
}

func TestAgentRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.pod("u2", "")
	ns, _ := w.sandbox("u1")
	_, path2 := w.sandbox("u2")
	w.start()
	first := w.ztunnel()
	w.await("both pods are in", func() bool {
		return len(first.has()) == 2 && w.annotation("u1")+w.annotation("u2") == "enabledenabled"
	})
	w.stop()
	if err := netns.Delete(path2); err != nil { // u2's namespace cannot be found again
		t.Fatal(err)
	}
	w.erase("pod-u1")
	w.pod("u1", "") // as it was
	w.start()
	second := w.ztunnel()
	w.await("a ztunnel got the snapshot", func() bool { return second.snapshots() > 0 && first.snapshots() > 1 })
	if second.has()["u1"] != ns.ID() || !second.keeps("u2") {
		t.Errorf("snapshot after a restart: %v, u2 kept %v", second.has(), second.keeps("u2"))
	}
	if len(first.has()) != 2 {
		t.Errorf("the older ztunnel has %v, want both pods", first.has())
	}
	if w.annotation("u1") != enroll.RedirectionEnabled {
		t.Errorf("annotation %q", w.annotation("u1"))
	}
}

// A pod that is in the mesh stays so in everybody's eyes while a restarted agent
// waits for its ztunnel to come back.
func TestRestartBeforeZtunnelReconnects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.sandbox("u1")
	w.start()
	_, disconnect := w.connect(&ztunnel{pods: map[mesh.PodUID]netns.ID{}, kept: map[mesh.PodUID]bool{}})
	w.await("the pod is in", func() bool { return w.state("u1") == "enrolled" && w.annotation("u1") == enroll.RedirectionEnabled })
	w.stop()
	disconnect()
	w.start()
	w.await("the agent misses its ztunnel", func() bool {
		pods := w.agent.Status().Pods
		return len(pods) == 1 && strings.Contains(pods[0].Error, zds.ErrNoZtunnel.Error())
	})
	if got := w.annotation("u1"); got != enroll.RedirectionEnabled {
		t.Errorf("annotation while ztunnel reconnects: %q", got)
	}
	w.run(&ztunnel{pods: map[mesh.PodUID]netns.ID{}, kept: map[mesh.PodUID]bool{}, full: true})
	w.await("a ztunnel that does not take it is heard", func() bool { return w.annotation("u1") == enroll.RedirectionPending })
}

// A restarted agent finishes what the old one began: a pod that was unlabelled
// while no agent ran leaves.
func TestLeaveAfterRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	ns, _ := w.sandbox("u1")
	w.start()
	z := w.ztunnel()
	w.await("the pod is in", func() bool { return w.state("u1") == "enrolled" })
	w.stop()
	w.namespace("none")
	w.start()
	w.await("the pod is out", func() bool { return !w.captured(ns) && len(z.has()) == 0 && w.annotation("u1") == "" })
}

// A ztunnel that replaces another but cannot take a pod is asked again, and the
// pod says so meanwhile.
func TestSuccessorRefusesPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.sandbox("u1")
	w.start()
	w.ztunnel()
	w.await("the pod is in", func() bool { return w.annotation("u1") == enroll.RedirectionEnabled })
	second := w.run(&ztunnel{pods: map[mesh.PodUID]netns.ID{}, kept: map[mesh.PodUID]bool{}, full: true})
	w.await("the pod waits for the second", func() bool { return w.annotation("u1") == enroll.RedirectionPending })
	second.mu.Lock()
	second.full = false
	second.mu.Unlock()
	w.await("the second has it", func() bool { return w.annotation("u1") == enroll.RedirectionEnabled && len(second.has()) == 1 })
}

func TestSandboxMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	_, path := w.sandbox("u1")
	w.start()
	z := w.ztunnel()
	w.await("ztunnel is connected", func() bool { return z.snapshots() > 0 })
	if code, text := w.cmdAdd("u1", path); code != http.StatusOK {
		t.Fatalf("cmdadd: %d %s", code, text)
	}
	if code, text := w.post("/cmddel", delRequest{PodName: "cart-u1", PodNamespace: "shop"}); code != http.StatusOK {
		t.Fatalf("cmddel: %d %s", code, text)
	}
	if len(z.has()) != 0 || w.annotation("u1") != "" || w.state("u1") != "out" {
		t.Errorf("after cmddel: %v, %q, %q", z.has(), w.annotation("u1"), w.state("u1"))
	}
	if err := netns.Delete(path); err != nil {
		t.Fatal(err)
	}
	again, _ := w.sandbox("u1")
	if code, text := w.cmdAdd("u1", path); code != http.StatusOK {
		t.Fatalf("cmdadd: %d %s", code, text)
	}
	if z.has()["u1"] != again.ID() {
		t.Errorf("ztunnel has %v, want the new namespace %s", z.has(), again.ID())
	}
}

// TestLateGoodbye: a runtime that cleans up speaks of a sandbox that is long gone, and
// means neither the pod that has its name now nor the pod's new sandbox.
func TestLateGoodbye(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	ns, path := w.sandbox("u1")
	w.start()
	z := w.ztunnel()
	w.await("ztunnel is connected", func() bool { return z.snapshots() > 0 })
	add := addRequest{Netns: path, PodName: "cart-u1", PodNamespace: "shop", PodUID: "u1", ContainerID: "new"}
	if code, text := w.post("/cmdadd", add); code != http.StatusOK {
		t.Fatalf("cmdadd: %d %s", code, text)
	}
	for _, late := range []delRequest{
		{PodName: "cart-u1", PodNamespace: "shop", PodUID: "u0", ContainerID: "old"},
		{PodName: "cart-u1", PodNamespace: "shop", PodUID: "u1", ContainerID: "old"},
	} {
		if code, text := w.post("/cmddel", late); code != http.StatusOK {
			t.Fatalf("cmddel: %d %s", code, text)
		}
		if z.has()["u1"] != ns.ID() || w.state("u1") != "enrolled" {
			t.Errorf("after %v: ztunnel has %v, the pod is %s", late, z.has(), w.state("u1"))
		}
	}
	if code, text := w.post("/cmddel", delRequest{PodName: "cart-u1", PodNamespace: "shop", PodUID: "u1", ContainerID: "new"}); code != http.StatusOK {
		t.Fatalf("cmddel: %d %s", code, text)
	}
	if len(z.has()) != 0 {
		t.Errorf("after its own: ztunnel has %v", z.has())
	}
}

func TestCmdAddRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.pod("out", ", labels: {istio.io/dataplane-mode: none}")
	w.start()
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	outside, outsidePath := w.sandbox("out")
	for _, c := range []struct {
		name string
		body any
		code int
		want string
	}{
		{"not JSON", "{nonsense", http.StatusBadRequest, "request body"},
		{"unknown pod", map[string]any{"PodName": "nobody", "PodNamespace": "shop"}, http.StatusServiceUnavailable, "not known on this node"},
		{"no namespace", map[string]any{"Netns": plain, "PodName": "cart-u1", "PodNamespace": "shop"}, http.StatusServiceUnavailable, "not a network namespace"},
		{"the node's namespace", map[string]any{"Netns": "/proc/self/ns/net", "PodName": "cart-u1", "PodNamespace": "shop"}, http.StatusServiceUnavailable, "node's own"},
		{"outside the mesh", map[string]any{"Netns": outsidePath, "PodName": "cart-out", "PodNamespace": "shop"}, http.StatusOK, `"inMesh":false`},
	} {
		if code, text := w.post("/cmdadd", c.body); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s", c.name, code, text)
		}
	}
	if w.captured(outside) {
		t.Error("a pod outside the mesh was captured")
	}
}

// The probe rule names the address that this node's routing prefers for the pod.
func TestProbeSource(t *testing.T) {
	t.Parallel()
	src, err := probeSource(mustAddrPort("127.0.0.1:1").Addr())
	if err != nil || src != mustAddrPort("127.0.0.1:1").Addr() {
		t.Errorf("probe source %v, %v", src, err)
	}
	p := &pod{agent: &Agent{}, log: slog.New(slog.DiscardHandler)}
	o := p.optionsFor(enroll.Pod{IPs: []netip.Addr{src}, ProbePorts: []uint16{8080}}, enroll.Capture{})
	if len(o.Probes) != 1 || o.Probes[0].Source != src || o.Probes[0].Ports[0] != 8080 {
		t.Errorf("probes %+v", o.Probes)
	}
}
