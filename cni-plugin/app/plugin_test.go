package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/culvert-mesh/culvert/cni-plugin/plugin"
)

// buildPlugin returns the path of the CNI plugin's binary, and fails if it has
// taken in what would make it slow to start.
func buildPlugin(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), plugin.Type)
	const pkg = "github.com/culvert-mesh/culvert/cni-plugin/cmd/plugin"
	if out, err := exec.Command("go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	deps, err := exec.Command("go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, heavy := range []string{"k8s.io/", "google.golang.org/grpc", "google.golang.org/protobuf", "github.com/prometheus"} {
		if bytes.Contains(deps, []byte(heavy)) {
			t.Errorf("the plugin contains %s", heavy)
		}
	}
	return path
}

// runtime calls a plugin as a container runtime does.
type runtime struct {
	t      *testing.T
	binary string
	config map[string]any
}

// call returns the plugin's answer, or the error that it printed.
func (r runtime) call(command, podName, netns string) (string, error) {
	r.t.Helper()
	stdin, err := json.Marshal(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(r.binary)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/nowhere",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + podName + ";K8S_POD_INFRA_CONTAINER_ID=c1",
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		e := &types.Error{}
		if json.Unmarshal(out, e) != nil || e.Msg == "" {
			r.t.Fatalf("%s: failed without an error that a runtime understands: %s %s", command, out, exit.Stderr)
		}
		return "", e
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return string(out), nil
}

// fails checks that a call is refused with that code and words.
func (r runtime) fails(command, podName, netns string, code uint, words string) {
	r.t.Helper()
	_, err := r.call(command, podName, netns)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), words) {
		r.t.Errorf("%s of %s: %v; want code %d and %q", command, podName, err, code, words)
	}
}

func (r runtime) works(command, podName, netns string) string {
	r.t.Helper()
	out, err := r.call(command, podName, netns)
	if err != nil {
		r.t.Errorf("%s of %s: %v", command, podName, err)
	}
	return out
}

func newRuntime(t *testing.T, w *world) runtime {
	return runtime{t, buildPlugin(t), map[string]any{
		"cniVersion": "1.1.0", "name": "cluster", "type": plugin.Type,
		"agentSocket": w.cfg.Socket, "eligibilityFile": w.cfg.Eligibility,
		"systemNamespace": "shop", "ownPods": []string{"agent-"}, "timeoutSeconds": 10,
		"prevResult": map[string]any{"cniVersion": "1.1.0",
			"interfaces": []any{map[string]any{"name": "eth0", "sandbox": "/x"}},
			"ips":        []any{map[string]any{"interface": 0, "address": "127.0.0.1/8"}}},
	}}
}

// A pod starts when the agent has it in the mesh, and what the plugins before have
// done is handed on.
func TestPlugin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.start()
	r := newRuntime(t, w)
	ns, path := w.sandbox("u1")

	r.fails("ADD", "cart-u1", path, types.ErrTryAgainLater, "ztunnel")
	z := w.ztunnel()
	w.await("a ztunnel is connected", func() bool { return w.agent.Status().Ztunnels == 1 })
	out := r.works("ADD", "cart-u1", path)
	var result struct {
		CNIVersion string
		IPs        []struct{ Address string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || result.CNIVersion != "1.1.0" || len(result.IPs) != 1 || result.IPs[0].Address != "127.0.0.1/8" {
		t.Errorf("result %s, %v", out, err)
	}
	if !w.captured(ns) || len(z.has()) != 1 {
		t.Errorf("captured %v, ztunnel has %v", w.captured(ns), z.has())
	}
	r.works("CHECK", "cart-u1", path)
	r.works("GC", "cart-u1", "")
	if v := r.works("VERSION", "", ""); !strings.Contains(v, `"1.1.0"`) {
		t.Errorf("versions %s", v)
	}
	// A runtime may repeat both.
	r.works("ADD", "cart-u1", path)
	r.works("DEL", "cart-u1", path)
	r.works("DEL", "cart-u1", "")
	w.await("ztunnel has let go of the pod", func() bool { return len(z.has()) == 0 })

	// Standalone there is no result to hand on.
	delete(r.config, "prevResult")
	if out := r.works("ADD", "agent-x", path); !strings.Contains(out, `"cniVersion": "1.1.0"`) {
		t.Errorf("without a previous result: %s", out)
	}
	r.config["prevResult"] = map[string]any{"cniVersion": "9.9"}
	r.fails("ADD", "cart-u1", path, types.ErrDecodingFailure, "prevResult")
}

// Without an agent pods outside the mesh start, and the mesh's own; the others
// wait, and are told why.
func TestPluginWithoutAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.namespace("ambient")
	w.pod("u1", "")
	w.pod("u2", ", labels: {istio.io/dataplane-mode: none}")
	r := newRuntime(t, w)
	_, path := w.sandbox("u1")

	r.fails("ADD", "cart-u2", path, types.ErrTryAgainLater, "does not answer")
	r.fails("STATUS", "", "", types.ErrPluginNotAvailable, "does not answer")
	r.works("ADD", "agent-x", path)
	r.works("DEL", "cart-u1", path)

	w.start()
	w.await("the eligibility file names the pods", func() bool {
		raw, _ := os.ReadFile(w.cfg.Eligibility)
		return bytes.Contains(raw, []byte("shop/cart-u2"))
	})
	r.works("STATUS", "", "")
	r.works("ADD", "cart-u2", path)
	w.stop()

	r.works("STATUS", "", "")
	r.works("ADD", "cart-u2", path)
	r.fails("ADD", "cart-u1", path, types.ErrTryAgainLater, "may not start uncaptured")
	r.fails("ADD", "cart-9", path, types.ErrTryAgainLater, "namespace shop is in the mesh")
	if err := os.WriteFile(w.cfg.Eligibility, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.fails("ADD", "cart-u2", path, types.ErrTryAgainLater, "eligibility file")
}

// An agent that accepts and never answers holds a pod up for the time limit and
// no longer.
func TestPluginTimeLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := newRuntime(t, w)
	l := listenUnix(t, w.cfg.Socket)
	defer l.Close()
	r.config["timeoutSeconds"] = 1
	r.fails("ADD", "cart-u1", "/proc/self/ns/net", types.ErrTryAgainLater, fmt.Sprintf("does not answer at %s", w.cfg.Socket))
}

// listenUnix is a socket whose queue takes connections that nobody accepts.
func listenUnix(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
