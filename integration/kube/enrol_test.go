//go:build kube

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// count makes the node count packets that reach its pods from elsewhere, by port.
func count(t *testing.T, node string) func() map[string]int {
	t.Helper()
	nft := func(stdin string, args ...string) []byte {
		cmd, err := enter(the.l, node, append([]string{"nft"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("nft: %v", err)
		}
		return out
	}
	nft(`table ip culvert_test {
		counter port8080 {}
		counter port15008 {}
		chain seen {
			type filter hook prerouting priority -400
			iifname "eth0" ip daddr `+podRange+` tcp dport 8080 counter name port8080
			iifname "eth0" ip daddr `+podRange+` tcp dport 15008 counter name port15008
		}
	}`, "-f", "-")
	t.Cleanup(func() { nft("", "delete", "table", "ip", "culvert_test") })
	return func() map[string]int {
		var list struct {
			NFTables []struct {
				Counter struct {
					Name    string
					Packets int
				}
			}
		}
		if err := json.Unmarshal(nft("", "-j", "list", "counters", "table", "ip", "culvert_test"), &list); err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, item := range list.NFTables {
			got[item.Counter.Name] = item.Counter.Packets
		}
		return got
	}
}

func TestEnrolment(t *testing.T) {
	s := newSpace(t, "enrolment", true)
	s.strict()
	s.apply(fields{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": fields{"name": "client", "namespace": s.name}})
	client := newPod(s.name, "client", "node1", "pause")
	client.spec()["serviceAccountName"] = "client"
	s.pods(newPod(s.name, "server", "node2"), client)
	s.annotated("enabled", "client", "server")
	other := newSpace(t, "outside", false)
	other.pods(newPod(other.name, "stranger", "node1", "pause"))

	seen := count(t, "node2")
	from := s.pod("client").Status.PodIP
	out := s.must("client", "get", s.url("server"))
	if !strings.Contains(out, "server saw "+from+":") {
		t.Errorf("server answered %q, want it to see %s", out, from)
	}
	eventually(t, "the server's ztunnel tells of it", func() error {
		if len(the.proxies["node2"].logged("connection complete", `direction="inbound"`, `dst.workload="server"`,
			`src.identity="spiffe://cluster.local/ns/enrolment/sa/client"`, `dst.identity="spiffe://cluster.local/ns/enrolment/sa/default"`)) == 0 {
			return errors.New("no such line")
		}
		return nil
	})
	if got := seen(); got["port8080"] != 0 || got["port15008"] == 0 {
		t.Errorf("packets between the nodes by port: %v, want all of them by tunnel", got)
	}
	if out, err := other.exec("stranger", "get", s.url("server")); err == nil {
		t.Errorf("a pod outside the mesh reached one under STRICT: %s", out)
	}
	if got := other.pod("stranger").Metadata.Annotations[redirects]; got != "" {
		t.Errorf("the pod outside has annotation %q", got)
	}
}

// probed returns a server with a probe of every place.
func probed(namespace, name string, probe fields) object {
	p := newPod(namespace, name, "node1")
	probe["periodSeconds"] = 1 // many are counted; none that is only late has the pod started again
	probe["timeoutSeconds"], probe["failureThreshold"] = 30, 60
	for _, place := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		p.container()[place] = probe
	}
	return p
}

func TestProbes(t *testing.T) {
	s := newSpace(t, "probes", true)
	s.strict()
	kinds := map[string]fields{
		"/probe/http": {"httpGet": fields{"path": "/probe/http", "port": 8080}},
		"tcp":         {"tcpSocket": fields{"port": 9090}},
		"grpc":        {"grpc": fields{"port": 8080}},
		"/probe/exec": {"exec": fields{"command": []string{"/workload", "probe"}}},
	}
	name := func(kind string) string { return "by-" + kind[strings.LastIndex(kind, "/")+1:] }
	var pods []object
	for kind, probe := range kinds {
		pods = append(pods, probed(s.name, name(kind), probe))
	}
	dead := newPod(s.name, "dead", "node1")
	dead.container()["livenessProbe"] = fields{"tcpSocket": fields{"port": 9999}, "periodSeconds": 1, "failureThreshold": 1}
	s.apply(dead)
	s.pods(pods...)
	for kind := range kinds {
		s.annotated("enabled", name(kind))
		eventually(t, "probes arrive by "+kind, func() error {
			counted := map[string]int{}
			out, err := s.exec(name(kind), "get", "http://127.0.0.1:8080/counts")
			if err == nil {
				err = json.Unmarshal([]byte(out), &counted)
			}
			if err == nil && counted[kind] < 5 {
				err = fmt.Errorf("%d so far of %v", counted[kind], counted)
			}
			return err
		})
		if p := s.pod(name(kind)); p.Status.Statuses[0].RestartCount != 0 {
			t.Errorf("%s was started again %d times", name(kind), p.Status.Statuses[0].RestartCount)
		}
	}
	eventually(t, "a probe that must fail does", func() error {
		if st := s.pod("dead").Status.Statuses; len(st) == 0 || st[0].RestartCount == 0 {
			return errors.New("the pod was not started again")
		}
		return nil
	})
}

// TestHostNetwork: a pod in the node's own network cannot be captured, and starts.
func TestHostNetwork(t *testing.T) {
	s := newSpace(t, "hostnetwork", true)
	p := newPod(s.name, "host", "node1", "pause")
	p.spec()["hostNetwork"] = true
	s.pods(p)
	eventually(t, "the agent has decided", func() error {
		st, err := the.status("node1")
		if err != nil {
			return err
		}
		for _, q := range st.Pods {
			if q.Namespace == s.name && q.Name == "host" && !q.InMesh && q.State == "out" {
				return nil
			}
		}
		return fmt.Errorf("%+v", st.Pods)
	})
	if got := s.pod("host").Metadata.Annotations[redirects]; got != "" {
		t.Errorf("annotation %q", got)
	}
}

func service(namespace, name string) fields {
	return fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": name, "namespace": namespace},
		"spec": fields{"selector": fields{"app": name}, "ports": []any{fields{"port": 80, "targetPort": 8080}}}}
}

func TestJob(t *testing.T) {
	s := newSpace(t, "jobs", true)
	s.strict()
	s.apply(service(s.name, "server"))
	s.pods(newPod(s.name, "server", "node2"))
	p := newPod(s.name, "", "node1", "get", "http://server.jobs.svc.cluster.local/", "3")
	p.spec()["restartPolicy"] = "Never"
	s.apply(fields{"apiVersion": "batch/v1", "kind": "Job", "metadata": fields{"name": "job", "namespace": s.name},
		"spec": fields{"backoffLimit": 0, "template": fields{"metadata": fields{"labels": fields{"app": "job"}}, "spec": p["spec"]}}})
	eventually(t, "the job has succeeded", func() error {
		var job struct {
			Status struct{ Succeeded, Failed int }
		}
		if err := the.api.get(t.Context(), "/apis/batch/v1/namespaces/jobs/jobs/job", &job); err != nil {
			return err
		}
		if job.Status.Failed > 0 {
			out, err := s.kubectl("logs", "job/job")
			t.Fatalf("the job failed: %s %v", out, err)
		}
		if job.Status.Succeeded == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, "its requests were tunnelled", func() error {
		if len(the.proxies["node2"].logged(`direction="inbound"`, `dst.workload="server"`, `src.namespace="jobs"`, "connection complete")) < 3 {
			return errors.New("not in the log")
		}
		return nil
	})
}

// lines is how far a holder has come, and fails the test when it has been restarted.
func lines(s *space, pod string) int {
	s.t.Helper()
	out, err := s.kubectl("logs", pod, "--tail=1")
	if err != nil {
		s.t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscanf(out, "line %d", &n); err != nil {
		return 0
	}
	if p := s.pod(pod); p.Status.Statuses[0].RestartCount > 0 {
		s.t.Fatalf("the connection of %s was broken", pod)
	}
	return n
}

func (s *space) goesOn(pod string) {
	s.t.Helper()
	before := lines(s, pod)
	eventually(s.t, "the connection of "+pod+" goes on", func() error {
		if now := lines(s, pod); now < before+5 {
			return fmt.Errorf("line %d after %d", now, before)
		}
		return nil
	})
}

// TestLabels: a namespace joins and leaves while its pods talk.
func TestLabels(t *testing.T) {
	s := newSpace(t, "labels", false)
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	holder := func(name string) {
		t.Helper()
		p := newPod(s.name, name, "node1", "hold", s.pod("server").Status.PodIP+":9090")
		p.spec()["restartPolicy"] = "Always"
		s.pods(p)
		s.goesOn(name)
	}
	holder("before")
	tunnelled := func() int {
		return len(the.proxies["node2"].logged("connection complete", `direction="inbound"`, `dst.workload="server"`, `src.workload="client"`, `dst.namespace="labels"`))
	}

	s.label(true)
	s.annotated("enabled", "server", "client", "before")
	eventually(t, "new connections are tunnelled", func() error {
		s.must("client", "get", s.url("server"))
		if tunnelled() == 0 {
			return errors.New("not in the log")
		}
		return nil
	})
	s.goesOn("before")
	holder("during")

	s.label(false)
	s.annotated("", "server", "client", "before", "during")
	before := tunnelled()
	for range 3 {
		s.must("client", "get", s.url("server"))
	}
	if after := tunnelled(); after != before {
		t.Errorf("%d connections were tunnelled after the pods had left", after-before)
	}
	s.goesOn("before")
	s.goesOn("during")
}

func TestDeny(t *testing.T) {
	s := newSpace(t, "deny", true)
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	s.works("client", "get", s.url("server"))
	policy := fields{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": fields{"name": "nobody", "namespace": s.name},
		"spec":     fields{"action": "DENY", "rules": []any{fields{"from": []any{fields{"source": fields{"namespaces": []string{"deny"}}}}}}}}
	start := time.Now()
	s.apply(policy)
	s.fails("client", "get", s.url("server"))
	t.Logf("denied %.2f s after the policy was written, an exec included", time.Since(start).Seconds())
	eventually(t, "ztunnel names the policy", func() error {
		if len(the.proxies["node2"].logged("deny/nobody", `dst.workload="server"`)) == 0 {
			return errors.New("not in the log")
		}
		return nil
	})
	if err := the.api.remove(t.Context(), "/apis/security.istio.io/v1/namespaces/deny/authorizationpolicies/nobody"); err != nil {
		t.Fatal(err)
	}
	s.works("client", "get", s.url("server"))
}

// TestPodDeleted: nothing of a pod stays behind on its node.
func TestPodDeleted(t *testing.T) {
	s := newSpace(t, "deleted", true)
	s.pods(newPod(s.name, "short", "node1"))
	s.annotated("enabled", "short")
	if err := the.api.remove(t.Context(), "/api/v1/namespaces/deleted/pods/short"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent has forgotten it", func() error {
		st, err := the.status("node1")
		if err != nil {
			return err
		}
		for _, p := range st.Pods {
			if p.Namespace == s.name {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	eventually(t, "ztunnel has let go of it", func() error {
		if len(the.proxies["node1"].logged("pod has left", "deleted/short")) == 0 {
			return errors.New(strings.Join(the.proxies["node1"].logged("deleted/short"), "\n"))
		}
		return nil
	})
}

// TestDNS: ztunnel answers what pods ask, for the mesh's names by itself.
func TestDNS(t *testing.T) {
	s := newSpace(t, "names", true)
	s.apply(service(s.name, "server"))
	s.pods(newPod(s.name, "server", "node2"), newPod(s.name, "client", "node1", "pause"))
	var svc struct{ Spec struct{ ClusterIP string } }
	if err := the.api.get(t.Context(), "/api/v1/namespaces/names/services/server", &svc); err != nil {
		t.Fatal(err)
	}
	asked := func() int {
		return metric(t, "http://"+placeOf("node1").ip+":15020/metrics", "istio_dns_requests_total")
	}
	forwarded := func() int {
		return metric(t, "http://"+placeOf("node1").ip+":15020/metrics", "istio_dns_upstream_requests_total")
	}
	eventually(t, "the name resolves", func() error { _, err := s.exec("client", "lookup", "server.names.svc.cluster.local."); return err })
	before, upstream := asked(), forwarded()
	if out := s.must("client", "lookup", "server.names.svc.cluster.local."); !strings.Contains(out, svc.Spec.ClusterIP) {
		t.Errorf("got %s, want %s", out, svc.Spec.ClusterIP)
	}
	if after, up := asked(), forwarded(); after <= before || up != upstream {
		t.Errorf("ztunnel was asked %d times, and asked others %d times", after-before, up-upstream)
	}
	if out, err := s.exec("client", "lookup", "nobody.example."); err == nil {
		t.Errorf("a name that nobody has: %s", out)
	}
	s.works("client", "get", "http://server/")
}
