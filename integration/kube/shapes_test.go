//go:build kube

package main

import (
	"fmt"
	"testing"
)

// TestShapes: pods of every make are captured, and do what they do elsewhere.
func TestShapes(t *testing.T) {
	s := newSpace(t, "shapes", true)
	s.apply(service(s.name, "server"), service(s.name, "self"))
	s.apply(fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": "each", "namespace": s.name},
		"spec": fields{"clusterIP": "None", "selector": fields{"app": "member"}, "ports": []any{fields{"port": 8080}}}})
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))

	users := newPod(s.name, "own-users", "node1")
	users.spec()["hostUsers"] = false
	port := newPod(s.name, "host-port", "node2")
	port.container()["ports"] = []any{fields{"containerPort": 8080, "hostPort": 18080}}
	member := newPod(s.name, "member", "node2")
	member.spec()["hostname"], member.spec()["subdomain"] = "member-0", "each"
	// What runs before a pod's container is in the mesh as well.
	before := newPod(s.name, "before", "node1", "pause")
	before.spec()["initContainers"] = []any{
		fields{"name": "sidecar", "image": imageName("workload"), "imagePullPolicy": "Never", "restartPolicy": "Always",
			"startupProbe": fields{"httpGet": fields{"port": 8080}, "periodSeconds": 1}},
		fields{"name": "init", "image": imageName("workload"), "imagePullPolicy": "Never",
			"args": []string{"get", "http://server.shapes.svc.cluster.local/"}},
	}
	s.pods(users, port, member, before, newPod(s.name, "self", "node1"))
	s.annotated("enabled", "own-users", "host-port", "member", "before", "self")
	for _, name := range []string{"own-users", "host-port", "before"} {
		s.works("client", "get", s.url(name))
	}
	s.works("self", "get", "http://self.shapes.svc.cluster.local/", "3") // "self" alone is in its /etc/hosts
	s.works("client", "get", "http://member-0.each.shapes.svc.cluster.local:8080/")
	eventually(t, "the host's port leads to the pod", func() error { return fetch("http://" + placeOf("node2").ip + ":18080/") })
	eventually(t, "the init container's request was tunnelled", func() error {
		if len(the.proxies["node2"].logged("connection complete", `direction="inbound"`, `src.workload="before"`, `dst.workload="server"`)) == 0 {
			return fmt.Errorf("not in the log")
		}
		return nil
	})
}
