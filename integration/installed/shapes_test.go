//go:build kube

package installed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// shapes is the namespace of pods of every make: all of it under STRICT.
const shapes = "installed-shapes"

// fields are a Kubernetes object, or a part of one.
type fields = map[string]any

// shape is a pod of the workload.
type shape struct {
	name, node string
	args       []string
	spec       fields // merged over the pod's
	container  fields // merged over its container's
}

func (s shape) podSpec() fields {
	main := fields{"name": "main", "image": workload, "imagePullPolicy": "Never", "args": s.args}
	for k, v := range s.container {
		main[k] = v
	}
	spec := fields{"terminationGracePeriodSeconds": 1, "containers": []any{main}}
	if s.node != "" {
		spec["nodeName"] = s.node
	}
	for k, v := range s.spec {
		spec[k] = v
	}
	return spec
}

func (s shape) pod() fields {
	return fields{"apiVersion": "v1", "kind": "Pod", "spec": s.podSpec(),
		"metadata": fields{"name": s.name, "namespace": shapes, "labels": fields{"app": s.name}}}
}

// serviceOf makes port 80 of a service of a shape's name lead to a port of its pods.
func serviceOf(name string, target int, more fields) fields {
	spec := fields{"selector": fields{"app": name}, "ports": []any{fields{"name": "http", "port": 80, "targetPort": target}}}
	for k, v := range more {
		spec[k] = v
	}
	return fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": name, "namespace": shapes}, "spec": spec}
}

// lax lets callers from outside the mesh in on one port.
func lax(name string, port string) fields {
	return fields{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": fields{"name": name, "namespace": shapes},
		"spec": fields{"selector": fields{"matchLabels": fields{"app": name}}, "mtls": fields{"mode": "STRICT"},
			"portLevelMtls": fields{port: fields{"mode": "PERMISSIVE"}}}}
}

func urlOf(name string) string { return "http://" + name + "." + shapes + ".svc.cluster.local/" }

// tool is a container that runs one of the workload's verbs, with more fields.
func tool(name string, more fields, args ...string) fields {
	c := fields{"name": name, "image": workload, "imagePullPolicy": "Never", "args": args}
	for k, v := range more {
		c[k] = v
	}
	return c
}

func httpProbe(path string, port int) fields {
	return fields{"httpGet": fields{"path": path, "port": port}, "periodSeconds": 1}
}

// allProbes has a container asked in one way three times over: at its start, and
// again and again whether it is ready and alive.
func allProbes(how fields) fields {
	probe := fields{"periodSeconds": 1, "failureThreshold": 30}
	for k, v := range how {
		probe[k] = v
	}
	return fields{"startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe}
}

// job runs one of the workload's verbs to its end, with a native sidecar beside it.
func job(name string, args ...string) fields {
	spec := shape{name: name, args: args}.podSpec()
	spec["restartPolicy"] = "Never"
	spec["initContainers"] = []any{tool("sidecar", fields{"restartPolicy": "Always"}, "pause")}
	return fields{"apiVersion": "batch/v1", "kind": "Job", "metadata": fields{"name": name, "namespace": shapes},
		"spec": fields{"backoffLimit": 20, "template": fields{"metadata": fields{"labels": fields{"app": name}}, "spec": spec}}}
}

// every is all that is made before the subtests look at it.
func every() []fields {
	member := shape{name: "db"}
	set := fields{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": fields{"name": "db", "namespace": shapes}, "spec": fields{
		"serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel", "selector": fields{"matchLabels": fields{"app": "db"}},
		"template": fields{"metadata": fields{"labels": fields{"app": "db"}}, "spec": member.podSpec()}}}
	all := []fields{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": shapes, "labels": fields{"istio.io/dataplane-mode": "ambient"}}},
		{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": fields{"name": "default", "namespace": shapes},
			"spec": fields{"mtls": fields{"mode": "STRICT"}}},
		serviceOf("server", 8080, fields{"ipFamilyPolicy": "PreferDualStack"}), shape{name: "server", node: "node2"}.pod(),
		shape{name: "client", node: "node1", args: []string{"pause"}}.pod(),
		shape{name: "host", node: "node1", args: []string{"pause"}, spec: fields{"hostNetwork": true}}.pod(),
		shape{name: "host-port", node: "node2", container: fields{"ports": []any{fields{"containerPort": 8080, "hostPort": 18080}}}}.pod(),
		lax("host-port", "8080"),
		serviceOf("local", 8080, fields{"type": "NodePort", "externalTrafficPolicy": "Local"}), shape{name: "local", node: "node2"}.pod(), lax("local", "8080"),
		serviceOf("sidecar", 8080, nil),
		shape{name: "sidecar", node: "node1", args: []string{"pause"}, spec: fields{"initContainers": []any{
			tool("native", fields{"restartPolicy": "Always", "startupProbe": httpProbe("/started", 8080)}),
			tool("init", nil, "get", urlOf("server")),
		}}}.pod(),
		serviceOf("own", 8080, nil), shape{name: "own", node: "node1"}.pod(),
		serviceOf("own-users", 8080, nil), shape{name: "own-users", node: "node2", spec: fields{"hostUsers": false}}.pod(),
		job("job", "get", urlOf("server"), "3"),
		serviceOf("db", 8080, fields{"clusterIP": "None", "ports": []any{fields{"port": 8080}}}), set,
	}
	for name, how := range map[string]fields{
		"probe-http": {"httpGet": fields{"path": "/probed", "port": 8080}},
		"probe-tcp":  {"tcpSocket": fields{"port": 9090}},
		"probe-grpc": {"grpc": fields{"port": 8080}},
		"probe-exec": {"exec": fields{"command": []string{"/workload", "probe"}}},
	} {
		all = append(all, serviceOf(name, 8080, nil), shape{name: name, node: "node2", container: allProbes(how)}.pod())
	}
	return all
}

func applyAll(t *testing.T, all ...fields) {
	t.Helper()
	var text strings.Builder
	for _, o := range all {
		doc, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("---\n" + string(doc) + "\n")
	}
	apply(t, text.String())
}

// call requests a URL from inside a pod.
func call(from, url string, times int) result {
	return runFor(limit, "", the.kube, "kubectl", "exec", "-n", shapes, from, "--", "/workload", "get", url, fmt.Sprint(times))
}

// called waits until requests from a pod to a URL succeed.
func called(t *testing.T, from, url string, times int) {
	t.Helper()
	eventually(t, from+" calls "+url, func() error { return call(from, url, times).err })
}

// captured waits until a pod runs, and is in the mesh.
func captured(t *testing.T, name string) {
	t.Helper()
	must(t, "wait", "-n", shapes, "--for=condition=Ready", "pod", name, "--timeout="+limit.String())
	eventually(t, name+" is in the mesh", func() error {
		if state := must(t, "get", "pod", "-n", shapes, name, "-o", `jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}`); state != "enabled" {
			return errors.New("annotation " + state)
		}
		return nil
	})
}

// hostOf is a node's first address and a port of it.
func hostOf(t *testing.T, node, port string) string {
	t.Helper()
	all := must(t, "get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	return net.JoinHostPort(strings.Fields(all)[0], port)
}

// fetch requests a URL from this machine, which is in no mesh.
func fetch(url string) (string, error) {
	resp, err := (&http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// runShapes makes pods of every make and looks at what each does under STRICT.
func runShapes(t *testing.T) {
	applyAll(t, every()...)
	t.Cleanup(func() { kubectl("delete", "namespace", shapes, "--wait=false") })
	captured(t, "server")
	captured(t, "client")
	called(t, "client", urlOf("server"), 1)
	for name, test := range map[string]func(*testing.T){
		"host network": shapeHostNetwork, "host port": shapeHostPort, "local traffic": shapeLocal, "init and sidecar": shapeSidecar,
		"self": shapeSelf, "own users": shapeOwnUsers, "job": shapeJob, "stateful set": shapeStateful, "probes": shapeProbes,
		"network policy": shapeNetworkPolicy, "every address": shapeAddresses,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// shapeAddresses: a pod and a service are called by each of their addresses, of either
// family where the cluster has both.
func shapeAddresses(t *testing.T) {
	for _, c := range []struct{ what, port, path string }{
		{"pod", "8080", "{.status.podIPs[*].ip}"}, {"service", "80", "{.spec.clusterIPs[*]}"},
	} {
		all := strings.Fields(must(t, "get", c.what, "server", "-n", shapes, "-o", "jsonpath="+c.path))
		if want := len(strings.Fields(must(t, "get", "service", "server", "-n", shapes, "-o", "jsonpath={.spec.ipFamilies[*]}"))); len(all) != want {
			t.Errorf("the %s has addresses %v, want %d", c.what, all, want)
		}
		for _, ip := range all {
			called(t, "client", "http://"+net.JoinHostPort(ip, c.port)+"/", 3)
		}
	}
}

// shapeHostNetwork: a pod in its node's network is no member: members call it,
// it calls none.
func shapeHostNetwork(t *testing.T) {
	must(t, "wait", "-n", shapes, "--for=condition=Ready", "pod", "host", "--timeout="+limit.String())
	if r := call("host", urlOf("server"), 1); r.err == nil {
		t.Error("a pod of the host's network got past STRICT: " + r.stdout)
	}
	called(t, "client", "http://"+hostOf(t, "node1", "15014")+"/healthz", 1) // the node agent's
}

// shapeHostPort: the node's port leads to the pod, for whom the pod lets in.
func shapeHostPort(t *testing.T) {
	captured(t, "host-port")
	url := "http://" + hostOf(t, "node2", "18080") + "/"
	answers := func(want string) func() error {
		return func() error {
			if out, err := fetch(url); err != nil || !strings.HasPrefix(out, want) {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		}
	}
	eventually(t, "the excepted port is reached from outside", answers("host-port saw "))
	must(t, "delete", "peerauthentication", "host-port", "-n", shapes)
	eventually(t, "STRICT holds for the node's port", func() error {
		if out, err := fetch(url); err == nil {
			return errors.New("it answers: " + out)
		}
		return nil
	})
}

// shapeLocal: externalTrafficPolicy: Local keeps callers on the node, and their
// address.
func shapeLocal(t *testing.T) {
	captured(t, "local")
	port := must(t, "get", "service", "local", "-n", shapes, "-o", "jsonpath={.spec.ports[0].nodePort}")
	eventually(t, "the pod sees the caller's own address", func() error {
		out, err := fetch("http://" + hostOf(t, "node2", port) + "/")
		if err == nil && (!strings.HasPrefix(out, "local saw ") || strings.Contains(out, "saw "+strings.TrimSuffix(hostOf(t, "node2", ""), ":"))) {
			err = errors.New(out)
		}
		return err
	})
	if out, err := fetch("http://" + hostOf(t, "node1", port) + "/"); err == nil {
		t.Error("the node without the pod answers: " + out)
	}
	called(t, "client", urlOf("local"), 3)
}

// shapeSidecar: what runs before a pod's container, or beside it, calls members and
// is called by them.
func shapeSidecar(t *testing.T) {
	captured(t, "sidecar") // its init container has called the server, or it would not be ready
	called(t, "client", urlOf("sidecar"), 3)
}

// shapeSelf: a pod calls the service whose only endpoint it is.
func shapeSelf(t *testing.T) {
	captured(t, "own")
	called(t, "own", urlOf("own"), 5)
	called(t, "client", urlOf("own"), 1)
}

// shapeOwnUsers: a pod in a user namespace of its own, where the node can make such.
func shapeOwnUsers(t *testing.T) {
	why := ""
	eventually(t, "the pod runs, or cannot", func() error {
		state := must(t, "get", "pod", "-n", shapes, "own-users", "-o", `jsonpath={.status.phase} {.status.conditions[?(@.type=="Ready")].status}`)
		if state == "Running True" {
			return nil
		}
		why = must(t, "get", "events", "-n", shapes, "--field-selector", "involvedObject.name=own-users,type=Warning", "-o", "jsonpath={.items[*].message}")
		if strings.Contains(why, "user namespace") || strings.Contains(why, "idmap") {
			return nil
		}
		return errors.New(state + ": " + why)
	})
	if why != "" && must(t, "get", "pod", "-n", shapes, "own-users", "-o", "jsonpath={.status.phase}") != "Running" {
		t.Skip("this node makes no user namespaces for pods: " + why)
	}
	captured(t, "own-users")
	called(t, "client", urlOf("own-users"), 3)
	if out := must(t, "exec", "-n", shapes, "own-users", "--", "/workload", "token", "/proc/self/uid_map"); strings.Fields(out)[1] == "0" {
		t.Errorf("the pod has the node's users: %s", out)
	}
}

// shapeJob: a Job calls members and ends, its native sidecar with it.
func shapeJob(t *testing.T) {
	must(t, "wait", "-n", shapes, "--for=condition=Complete", "job/job", "--timeout="+limit.String())
}

// shapeStateful: members of a StatefulSet call one another by their names.
func shapeStateful(t *testing.T) {
	captured(t, "db-0")
	captured(t, "db-1")
	for _, pair := range [][2]string{{"db-0", "db-1"}, {"db-1", "db-0"}, {"client", "db-1"}} {
		eventually(t, pair[0]+" calls "+pair[1], func() error {
			r := call(pair[0], "http://"+pair[1]+".db."+shapes+".svc.cluster.local:8080/", 1)
			if r.err == nil && !strings.HasPrefix(r.stdout, pair[1]+" saw ") {
				return errors.New("somebody else answers: " + r.stdout)
			}
			return r.err
		})
	}
}

// shapeProbes: probes of every kind get through, all of them, and nothing else from
// the node does.
func shapeProbes(t *testing.T) {
	for name, path := range map[string]string{"probe-http": "/probed", "probe-tcp": "tcp", "probe-grpc": "grpc", "probe-exec": "/probe/exec"} {
		captured(t, name)
		eventually(t, name+" is asked again and again", func() error {
			r := call("client", urlOf(name)+"counts", 1)
			if r.err != nil {
				return r.err
			}
			counts := map[string]int{}
			if err := json.Unmarshal([]byte(r.stdout), &counts); err != nil {
				return err
			}
			if counts[path] < 6 {
				return fmt.Errorf("%d times: %v", counts[path], counts)
			}
			return nil
		})
		if n := must(t, "get", "pod", "-n", shapes, name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); n != "0" {
			t.Errorf("%s was started again %s times", name, n)
		}
	}
}

// shapeNetworkPolicy: a policy that opens the tunnel's port to all opens only the
// ports that it names, to those that it names; the network here enforces none.
func shapeNetworkPolicy(t *testing.T) {
	applyAll(t, serviceOf("guarded", 8080, fields{"ports": []any{fields{"name": "http", "port": 80, "targetPort": 8080}, fields{"name": "echo", "port": 81, "targetPort": 9090}}}),
		shape{name: "guarded", node: "node2", container: fields{"ports": []any{fields{"name": "http", "containerPort": 8080}}, "readinessProbe": httpProbe("/ready", 8080)}}.pod(),
		shape{name: "friend", node: "node1", args: []string{"pause"}}.pod(), shape{name: "stranger", node: "node1", args: []string{"pause"}}.pod())
	for _, name := range []string{"guarded", "friend", "stranger"} {
		captured(t, name)
	}
	called(t, "friend", urlOf("guarded"), 1)
	called(t, "stranger", urlOf("guarded"), 1)
	applyAll(t, fields{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": fields{"name": "guard", "namespace": shapes}, "spec": fields{
		"podSelector": fields{"matchLabels": fields{"app": "guarded"}},
		"ingress": []any{
			fields{"ports": []any{fields{"port": 15008}}},
			fields{"from": []any{fields{"podSelector": fields{"matchLabels": fields{"app": "friend"}}}}, "ports": []any{fields{"port": "http"}}},
		}}})
	eventually(t, "a stranger is refused", func() error {
		if r := call("stranger", urlOf("guarded"), 1); r.err == nil {
			return errors.New("it is let in: " + r.stdout)
		}
		return nil
	})
	called(t, "friend", urlOf("guarded"), 5)
	called(t, "guarded", urlOf("guarded"), 3) // nobody is kept from himself
	if r := call("friend", "http://guarded."+shapes+".svc.cluster.local:81/", 1); r.err == nil || strings.Contains(r.stderr, "malformed") {
		t.Errorf("a friend reached the echo server, on a port that is not open: %v", r)
	}
	why := run(the.culvert, "why", shapes+"/stranger", "guarded:80", "--kubeconfig", os.Getenv("KUBECONFIG"))
	if why.err == nil || !strings.Contains(why.stdout, "explicitly denied by: "+shapes+"/NetworkPolicy:guard") {
		t.Errorf("why does not name the NetworkPolicy:\n%s", why.stdout)
	}
	if err := stillReady("guarded"); err != nil {
		t.Error(err) // the node's probes came in past the policy
	}
	must(t, "label", "pod", "stranger", "-n", shapes, "app=friend", "--overwrite")
	called(t, "stranger", urlOf("guarded"), 1)
	must(t, "delete", "networkpolicy", "guard", "-n", shapes)
}

func stillReady(name string) error {
	r := kubectl("get", "pod", "-n", shapes, name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	if words := strings.Fields(r.stdout); r.err != nil || !slices.Equal(words, []string{"True"}) {
		return fmt.Errorf("%s is ready: %q, %w", name, r.stdout, r.err)
	}
	return nil
}
