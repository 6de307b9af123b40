//go:build kube

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// metric is the sum of a family's series.
func metric(t *testing.T, url, family string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := 0.0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name != family && !strings.HasPrefix(name, family+"{") {
			continue
		}
		v, err := strconv.ParseFloat(lines.Text()[strings.LastIndex(lines.Text(), " ")+1:], 64)
		if err != nil {
			t.Fatalf("%s %s: %v", name, value, err)
		}
		sum += v
	}
	return int(sum)
}

// again starts a program of a node again and waits until the node is whole.
func again(t *testing.T, p *program, node string) {
	t.Helper()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, node+" is whole again", func() error { return the.ready(node) })
}

// TestAgentAway: without an agent pods outside the mesh start, and those of the
// mesh wait and say what for.
func TestAgentAway(t *testing.T) {
	in, out := newSpace(t, "away-in", true), newSpace(t, "away-out", false)
	in.pods(newPod(in.name, "early", "node1"), newPod(in.name, "client", "node2", "pause"))
	out.pods(newPod(out.name, "early", "node1", "pause")) // the agent knows the namespace
	the.agents["node1"].kill(syscall.SIGKILL)
	back := false
	t.Cleanup(func() {
		if !back {
			the.agents["node1"].start()
		}
	})

	out.pods(newPod(out.name, "late", "node1", "pause"))
	in.apply(newPod(in.name, "late", "node1"))
	eventually(t, "an event says why the pod of the mesh waits", func() error { return hasEvent(t, in.name, "late", "node agent does not answer") })
	if p := in.pod("late"); p.Status.Phase != "Pending" {
		t.Errorf("the pod of the mesh is %s without an agent", p.Status.Phase)
	}
	in.works("client", "get", in.url("early")) // what is captured stays so

	again(t, the.agents["node1"], "node1")
	back = true
	start := time.Now()
	in.ready("late")
	t.Logf("the pod was ready %.1f s after the agent was back", time.Since(start).Seconds())
	in.annotated("enabled", "late")
	in.works("client", "get", in.url("late"))
}

func hasEvent(t *testing.T, namespace, pod, text string) error {
	var list struct {
		Items []struct {
			Message        string
			InvolvedObject struct{ Name string }
		}
	}
	if err := the.api.get(t.Context(), "/api/v1/namespaces/"+namespace+"/events", &list); err != nil {
		return err
	}
	var messages []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == pod && strings.Contains(e.Message, text) {
			t.Logf("event: %s", e.Message)
			return nil
		}
		messages = append(messages, e.Message)
	}
	return fmt.Errorf("no event of %s with %q among %q", pod, text, messages)
}

// nodeFile is a file of a node, seen from here.
func nodeFile(node, path string) string { return the.l.node(node, "root", path) }

// installed is nil when the node's CNI configuration names the plugin.
func installed(node string) error {
	content, err := os.ReadFile(nodeFile(node, cniFile))
	if err == nil && !strings.Contains(string(content), `"culvert-cni"`) {
		err = fmt.Errorf("the plugin is not in %s", content)
	}
	return err
}

// TestConfigurationRewritten: a network that writes its configuration anew does
// not take its pods out of the mesh.
func TestConfigurationRewritten(t *testing.T) {
	s := newSpace(t, "rewritten", true)
	s.strict()
	eventually(t, "the plugin is installed", func() error { return installed("node2") })
	content := documents(cniConfig("node2"))
	content, _, _ = strings.Cut(content, "\n---")
	for i := range 3 {
		if err := os.WriteFile(nodeFile("node2", cniFile), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("the plugin is put back, time %d", i+1), func() error { return installed("node2") })
	}
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	s.annotated("enabled", "server", "client")
	s.works("client", "get", s.url("server"))
}

// TestControlPlaneRestart: traffic does not notice, and the ztunnels are not told
// again what they know.
func TestControlPlaneRestart(t *testing.T) {
	s := newSpace(t, "restart", true)
	s.strict()
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"),
		newPod(s.name, "holder", "node1", "pause"))
	s.works("client", "get", s.url("server"))
	the.control.kill(syscall.SIGKILL)
	s.must("client", "get", s.url("server"))
	if err := the.control.start(); err != nil {
		t.Fatal(err)
	}
	url := "http://" + controlIP + ":15014/metrics"
	eventually(t, "the control plane is ready", func() error { return fetch("http://" + controlIP + ":15021/healthz/ready") })
	eventually(t, "the ztunnels are connected", func() error {
		if n := metric(t, url, "pilot_xds"); n != len(nodes) {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	// A change reaches them, so what they were to be told at the beginning has too.
	s.pods(newPod(s.name, "new", "node2"))
	s.works("client", "get", s.url("new"))
	bytes, all := metric(t, url, "pilot_xds_config_size_bytes_sum"), metric(t, url, "pilot_xds_pushes")
	t.Logf("after the restart: %d responses, %d bytes", all, bytes)
	if known := len(s.dump(t, "node1")); bytes > known/2 {
		t.Errorf("%d bytes were sent, and all that a ztunnel knows are %d", bytes, known)
	}
}

// dump is what a node's ztunnel knows.
func (s *space) dump(t *testing.T, node string) string {
	t.Helper()
	cmd, err := enter(the.l, node, the.l.bin("workload"), "get", "http://127.0.0.1:15000/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestZtunnelKilled: connections through it end with it, and no pod needs anything
// more than a new ztunnel.
func TestZtunnelKilled(t *testing.T) {
	s := newSpace(t, "killed", true)
	s.strict()
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	s.works("client", "get", s.url("server"))
	for _, n := range nodes {
		the.proxies[n].kill(syscall.SIGKILL)
		again(t, the.proxies[n], n)
		s.works("client", "get", s.url("server"))
	}
	s.annotated("enabled", "client", "server")
}

// TestLateDefinitions: the control plane was started in a cluster that knew none of
// the mesh's kinds (see mesh.start), and goes by objects of them all the same.
func TestLateDefinitions(t *testing.T) {
	log := the.control.logged("kind is defined")
	for _, kind := range []string{"authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io",
		"gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io"} {
		if !strings.Contains(strings.Join(log, "\n"), kind) {
			t.Errorf("the control plane does not watch %s", kind)
		}
	}
	if first := the.control.logged("configuration read"); len(first) == 0 {
		t.Error("the control plane waited for definitions")
	} else if len(log) > 0 && log[0] < first[0] {
		t.Errorf("there were definitions before it was ready:\n%s\n%s", log[0], first[0])
	}
}

// TestUninstall: the node is as it was before the mesh; pods start without it, and
// with it when it is back.
func TestUninstall(t *testing.T) {
	s := newSpace(t, "uninstalled", true)
	eventually(t, "the plugin is installed", func() error { return installed("node2") })
	the.agents["node2"].kill(syscall.SIGTERM)
	t.Cleanup(func() { again(t, the.agents["node2"], "node2") })
	if err := installed("node2"); err != nil {
		t.Errorf("it went with an agent that only ended: %v", err)
	}
	remove := the.newAgent("node2", "--uninstall")
	if err := remove.start(); err != nil {
		t.Fatal(err)
	}
	<-remove.finished
	if code := remove.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("uninstall: exit code %d: %v", code, remove.logged("error"))
	}
	if installed("node2") == nil {
		t.Error("the plugin is in the configuration still")
	}
	if _, err := os.Stat(nodeFile("node2", "/opt/cni/bin/culvert-cni")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program is there still: %v", err)
	}
	s.pods(newPod(s.name, "bare", "node2", "pause"))
	if got := s.pod("bare").Metadata.Annotations[redirects]; got != "" {
		t.Errorf("annotation %q without a mesh", got)
	}
}
