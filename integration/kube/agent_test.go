//go:build kube

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// condition is what the agent has written on a node.
type condition struct{ Type, Status, Reason, Message string }

func proofOf(t *testing.T, node string) (c condition, taints []string) {
	t.Helper()
	var n struct {
		Spec   struct{ Taints []struct{ Key string } }
		Status struct{ Conditions []condition }
	}
	if err := the.api.get(context.Background(), "/api/v1/nodes/"+node, &n); err != nil {
		t.Fatal(err)
	}
	for _, taint := range n.Spec.Taints {
		taints = append(taints, taint.Key)
	}
	for _, found := range n.Status.Conditions {
		if found.Type == "culvert-mesh.github.io/Ready" {
			c = found
		}
	}
	return c, taints
}

func isProven(t *testing.T, node, status, reason string) {
	t.Helper()
	eventually(t, node+" is "+reason, func() error {
		if c, _ := proofOf(t, node); c.Status != status || c.Reason != reason {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

// leases are the addresses that the node's network has given out.
func leases(t *testing.T, node string) (n int) {
	t.Helper()
	files, err := filepath.Glob(nodeFile(node, "/var/lib/cni/networks/*/"+podPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(content), "culvert-proof") {
			n++
		}
	}
	return n
}

// TestProof: a node is tried by a pod through its own network, says what is wrong
// with it while it is, and keeps nothing of the pod.
func TestProof(t *testing.T) {
	for _, n := range nodes {
		isProven(t, n, "True", "Proven")
	}
	c, _ := proofOf(t, "node2")
	t.Log(c.Message)
	if strings.Contains(c.Message, "control plane was not tried") {
		t.Error("the control plane was not tried")
	}
	content, _, _ := strings.Cut(documents(cniConfig("node2")), "\n---")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(nodeFile("node2", cniFile), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { write(content); isProven(t, "node2", "True", "Proven") })
	write(strings.Replace(content, `"type":"portmap"`, `"type":"no-such-plugin"`, 1))
	isProven(t, "node2", "False", "Chain")
	c, _ = proofOf(t, "node2")
	if !strings.Contains(c.Message, "no-such-plugin") || !strings.Contains(c.Message, "fix: ") {
		t.Errorf("message %q", c.Message)
	}
	write(content)
	isProven(t, "node2", "True", "Proven")
	for _, n := range nodes {
		if left := leases(t, n); left != 0 {
			t.Errorf("%s: %d addresses of proofs are not given back", n, left)
		}
	}
}

// TestTaint: a node that begins with a taint loses it when it is proven, and no
// other taint.
func TestTaint(t *testing.T) {
	path := "/api/v1/nodes/node2"
	t.Cleanup(func() { the.api.patch(context.Background(), path, `{"spec":{"taints":null}}`) })
	if err := the.api.patch(t.Context(), path, `{"spec":{"taints":[
		{"key":"culvert-mesh.github.io/not-ready","effect":"NoSchedule"},{"key":"somebody.example/else","effect":"PreferNoSchedule"},
		{"key":"cni.istio.io/not-ready","effect":"NoSchedule"}]}}`); err != nil {
		t.Fatal(err)
	}
	the.agents["node2"].kill(syscall.SIGKILL)
	again(t, the.agents["node2"], "node2")
	eventually(t, "the taints are off", func() error {
		if _, taints := proofOf(t, "node2"); len(taints) != 1 || taints[0] != "somebody.example/else" {
			return fmt.Errorf("%q", taints)
		}
		return nil
	})
}

// TestPodEvents: what happens to a pod is told where people look.
func TestPodEvents(t *testing.T) {
	s := newSpace(t, "told", true)
	s.pods(newPod(s.name, "in", "node1", "pause"))
	host := newPod(s.name, "host", "node1", "pause")
	host.spec()["hostNetwork"] = true
	host.metadata()["labels"] = fields{labelMode: "ambient"}
	s.pods(host)
	eventually(t, "the pod has joined", func() error { return hasEvent(t, s.name, "in", "goes through this node's ztunnel") })
	eventually(t, "one cannot", func() error { return hasEvent(t, s.name, "host", "stays out of it: pod uses the host network") })
	s.label(false)
	eventually(t, "the pod has left", func() error { return hasEvent(t, s.name, "in", "its own affair again") })
}

// TestRulesDamaged: a pod whose rules are taken away is captured again at once. Its
// connections go on while the kernel still knows how to translate them, which it
// forgets only when whole chains are deleted.
func TestRulesDamaged(t *testing.T) {
	s := newSpace(t, "damaged", true)
	s.strict()
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	s.works("client", "get", s.url("server"))
	s.pods(newPod(s.name, "holder", "node1", "hold", s.pod("server").Status.PodIP+":9090"))
	s.goesOn("holder")
	whole := func(pod string) {
		t.Helper()
		eventually(t, "the rules of "+pod+" are back", func() error {
			out := inPod(t, s, pod, "nft", "list ruleset")
			if !strings.Contains(out, "redirect to :15001") || !strings.Contains(out, "redirect to :15006") {
				return errors.New(out)
			}
			return nil
		})
	}
	for _, pod := range []string{"server", "holder"} {
		for _, chain := range []string{"nat-output", "nat-prerouting"} {
			inPod(t, s, pod, "nft", "flush chain inet culvert "+chain)
			whole(pod)
		}
	}
	s.goesOn("holder")
	eventually(t, "it is told", func() error { return hasEvent(t, s.name, "holder", "something else changed the rules") })
	for _, script := range []string{"flush ruleset", "delete table inet culvert"} {
		inPod(t, s, "client", "nft", script)
		whole("client")
		s.must("client", "get", s.url("server"))
	}
}

// inPod runs a program of the node in a pod's network.
func inPod(t *testing.T, s *space, pod string, args ...string) string {
	t.Helper()
	var p struct {
		Spec   struct{ NodeName string }
		Status struct {
			ContainerStatuses []struct{ ContainerID string }
		}
	}
	if err := the.api.get(t.Context(), "/api/v1/namespaces/"+s.name+"/pods/"+pod, &p); err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	cmd, err := enter(the.l, p.Spec.NodeName, the.l.bin("ctr"), "-n", "k8s.io", "containers", "info", id)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("container %s: %v", id, err)
	}
	var info struct {
		Spec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			} `json:"linux"`
		}
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		t.Fatal(err)
	}
	for _, ns := range info.Spec.Linux.Namespaces {
		if ns.Type != "network" {
			continue
		}
		cmd, err := enter(the.l, p.Spec.NodeName, append([]string{"nsenter", "--net=" + ns.Path}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err != nil && !strings.Contains(string(out), "No such file") { // it may be being put back
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	t.Fatal(errors.New("the container has no network namespace"))
	return ""
}
