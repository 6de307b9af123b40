//go:build kube

package installed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/wiretap"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

const (
	namespace = "installed-shop"
	workload  = "culvert.test/workload:v1"
	marker    = "a-secret-that-nobody-may-read"
	web       = "http://web." + namespace + ":8080/"
)

// shop is a namespace with a client and a server on different nodes, and one more
// client that others are told from.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: ` + namespace + `}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + namespace + `}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}, {name: tcp, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct, namespace: ` + namespace + `, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}, {name: tcp, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-v2, namespace: ` + namespace + `}
spec: {selector: {app: web-v2}, ports: [{name: http, port: 8080}]}
`

// pod is one of the workload's, without a word about the mesh.
func pod(name, node string, args ...string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: %[2]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: %[1]s}}
spec:
  nodeName: %[3]s
  serviceAccountName: %[1]s
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - {name: main, image: "%[4]s", imagePullPolicy: Never, args: [%[5]s]}
`, name, namespace, node, workload, strings.Join(args, ","))
}

// get asks a URL from inside a pod.
func get(from, url string, times int) result {
	return runFor(limit, "", the.kube, "kubectl", "exec", "-n", namespace, from, "--", "/workload", "get", url, fmt.Sprint(times))
}

// TestInstall: one command, and the mesh is there; the same once more changes nothing;
// and `culvert check` has nothing to say.
func TestInstall(t *testing.T) {
	if out := culvert(t, "check"); !strings.Contains(out, "all is well") || !strings.Contains(out, "not installed") {
		t.Errorf("check before the install:\n%s", out)
	}
	start := time.Now()
	out := culvert(t, "install", "--set", "global.logFormat=json,controlplane.enforceNetworkPolicies=true", "--timeout", limit.String())
	t.Logf("%.1f s\n%s", time.Since(start).Seconds(), out)
	for _, want := range []string{"daemonset ztunnel", "daemonset culvert-cni", "deployment culvert-controlplane", "ready after"} {
		if !strings.Contains(out, want) {
			t.Errorf("install does not tell of %q", want)
		}
	}
	before := must(t, "get", "pods", "-n", "culvert-system", "-o", "name")
	culvert(t, "install", "--set", "global.logFormat=json,controlplane.enforceNetworkPolicies=true", "--timeout", limit.String())
	if after := must(t, "get", "pods", "-n", "culvert-system", "-o", "name"); after != before {
		t.Errorf("a second install replaced pods:\n%s\n%s", before, after)
	}
	eventually(t, "check", func() error { return run(the.culvert, "check").err })
	// The helm command could go on from here: to the API server, what it would change is its own.
	changed := culvert(t, "install", "--set", "global.logFormat=plain", "--dry-run")
	if r := runFor(limit, changed, the.kube, "kubectl", "apply", "--server-side", "--dry-run=server", "--field-manager=helm", "-f", "-"); r.err != nil {
		t.Errorf("helm upgrade would meet a conflict: %v", r.err)
	}
}

// TestWrongInput: errors that say what to do.
func TestWrongInput(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"chart value", []string{"upgrade", "--set", "global.hubb=x"}, "hubb"},
		{"no cluster", []string{"install", "--kubeconfig", "/nonexistent"}, "no cluster"},
		{"not installed there", []string{"upgrade", "--namespace", "elsewhere"}, "not installed in namespace elsewhere"},
		{"namespace missing", []string{"waypoint", "apply", "--namespace", "no-such-namespace"}, "no-such-namespace"},
		{"nothing to go back to", []string{"upgrade", "--rollback", "--revision", "77"}, "revision"},
	} {
		r := run(the.culvert, c.args...)
		if r.err == nil || !strings.Contains(r.stderr, c.want) || !strings.Contains(r.stderr, "hint:") {
			t.Errorf("%s: %v", c.name, r.err)
		}
	}
}

// TestNoRights: who may not install is told so before anything is changed.
func TestNoRights(t *testing.T) {
	apply(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: nobody, namespace: default}\n")
	defer must(t, "delete", "serviceaccount", "nobody", "-n", "default")
	token := must(t, "create", "token", "nobody", "-n", "default")
	file := t.TempDir() + "/kubeconfig"
	content, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "config", "set-credentials", "nobody", "--token="+token, "--kubeconfig="+file)
	must(t, "config", "set-context", "nobody", "--cluster="+must(t, "config", "view", "-o", "jsonpath={.clusters[0].name}"), "--user=nobody", "--kubeconfig="+file)
	r := run(the.culvert, "install", "--namespace", "elsewhere", "--kubeconfig", file, "--context", "nobody")
	if r.err == nil || !strings.Contains(r.stderr, "create daemonsets.apps") && !strings.Contains(r.stderr, "forbidden") || !strings.Contains(r.stderr, "hint:") {
		t.Errorf("%v", r.err)
	}
	if kubectl("get", "namespace", "elsewhere").err == nil {
		t.Error("a namespace was made")
	}
}

// TestEncrypted: before its namespace is labelled a pod's request can be read on the
// wire, afterwards none; the pods are the same all the time.
func TestEncrypted(t *testing.T) {
	apply(t, shop+pod("web", "node2")+pod("web-v2", "node2")+pod("client", "node1", "pause")+pod("other", "node1", "pause"))
	must(t, "wait", "-n", namespace, "--for=condition=Ready", "pods", "--all", "--timeout="+limit.String())
	eventually(t, "a request", func() error { return get("client", web, 1).err })
	if read := capture(t, func() error { return get("client", web+marker, 1).err }); read.Contains(marker) == 0 {
		t.Error("outside the mesh nothing was read: the capture is blind")
	}
	must(t, "label", "namespace", namespace, "istio.io/dataplane-mode=ambient")
	for _, name := range []string{"client", "other", "web"} {
		eventually(t, name+" is in the mesh", func() error {
			state := must(t, "get", "pod", "-n", namespace, name, "-o", `jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}`)
			if state != "enabled" {
				return errors.New("annotation " + state)
			}
			return nil
		})
	}
	eventually(t, "a request in the mesh", func() error { return get("client", web, 1).err })
	read := capture(t, func() error { // by one whose tunnel is open, and by one whose is not
		return errors.Join(get("client", web+marker, 20).err, get("other", web+marker, 20).err)
	})
	if n := read.Contains(marker); n != 0 {
		t.Errorf("the secret was read in %d streams", n)
	}
	if seen := read.Seen(); seen.Packets == 0 {
		t.Error("nothing was captured")
	}
	if tls := read.TLS(mesh.PortHBONE); tls.Connections == 0 || tls.TLS13 != tls.Connections {
		t.Errorf("of the tunnels that were opened not all are TLS 1.3: %+v", tls)
	}
}

// capture runs do, which must not fail, while somebody reads everything on node 1's wire.
func capture(t *testing.T, do func() error) *wiretap.Tap {
	t.Helper()
	var err error
	tap := wire(t, func() { err = do() })
	if err != nil {
		t.Fatal(err)
	}
	return tap
}

// TestRead: the verbs that read a mesh read this one: who is in it, is it well, which
// certificates there are, who talked to whom, and what would become of a connection.
func TestRead(t *testing.T) {
	file := os.Getenv("KUBECONFIG")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"ps"}, []string{namespace + "/client", "ztunnel-node1", "ztunnel-node2"}},
		{[]string{"status"}, []string{"configuration: accepted", "healthy"}},
		{[]string{"certs"}, []string{"ns/" + namespace + "/sa/client", "Available"}},
		{[]string{"log", "--namespace", namespace, "--last", "1000"}, []string{"client", "web"}},
		{[]string{"why", namespace + "/client", "web:8080"}, []string{"allowed", "ztunnel"}},
	} {
		out := culvert(t, append(c.args, "--kubeconfig", file)...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", strings.Join(c.args, " "), want, out)
			}
		}
	}
}

// TestPolicy: an AuthorizationPolicy holds as soon as it is there, and until it is gone.
func TestPolicy(t *testing.T) {
	apply(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: `+namespace+`}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/`+namespace+`/sa/client]}}]}]
`)
	eventually(t, "other is refused", func() error {
		if get("other", web, 1).err == nil {
			return errors.New("it is let in")
		}
		return nil
	})
	if r := get("client", web, 5); r.err != nil {
		t.Error(r.err)
	}
	must(t, "delete", "authorizationpolicy", "only-client", "-n", namespace)
	eventually(t, "other is let in", func() error { return get("other", web, 1).err })
}

// TestWaypoint: a waypoint by one command; a policy about paths, and a route that
// splits requests, are kept by it.
func TestWaypoint(t *testing.T) {
	out := culvert(t, "waypoint", "apply", "--namespace", namespace, "--enroll-namespace", "--wait", "--timeout", limit.String())
	if !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	if out := culvert(t, "waypoint", "status", "--namespace", namespace); !strings.Contains(out, "true") {
		t.Error(out)
	}
	apply(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: `+namespace+`}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: `+namespace+`}
spec:
  parentRefs: [{kind: Service, group: "", name: web, port: 8080}]
  rules: [{backendRefs: [{name: web, port: 8080, weight: 50}, {name: web-v2, port: 8080, weight: 50}]}]
`)
	eventually(t, "/admin is denied with 403", func() error {
		if r := get("client", web+"admin", 1); r.err == nil || !strings.Contains(r.stderr, "403") {
			return fmt.Errorf("answered: %v", r)
		}
		return nil
	})
	eventually(t, "both versions answer", func() error {
		r := get("client", web, 40)
		v2 := strings.Count(r.stdout, "web-v2 saw")
		if r.err != nil || v2 == 0 || v2 == 40 {
			return fmt.Errorf("%d of 40 by v2, %v", v2, r.err)
		}
		return nil
	})
	must(t, "delete", "httproute/split", "authorizationpolicy/no-admin", "-n", namespace)
}

// TestScripts: what scripts show on a laptop is to be seen here.
func TestScripts(t *testing.T) { runScripts(t) }

// TestShapes: pods of every make do under STRICT what they do elsewhere.
func TestShapes(t *testing.T) { runShapes(t) }

// TestUpgradeUnderLoad: to a next version and back, while requests and long streams of
// ztunnels go on; a version that never becomes ready is taken back by itself.
func TestUpgradeUnderLoad(t *testing.T) {
	for _, node := range []string{"node1", "node2"} {
		for _, image := range []string{"ztunnel", "cni", "controlplane", "waypoint"} {
			from, to := "culvert.local/"+image+":0.1.0", "culvert.local/"+image+":0.1.1"
			if r := run(the.kube, "exec", node, "ctr", "--namespace", "k8s.io", "images", "tag", "--force", from, to); r.err != nil {
				t.Fatal(r.err)
			}
		}
	}
	load := startLoad(t)
	for _, step := range []struct {
		args    []string
		version string // that runs afterwards
		fails   bool
	}{
		{[]string{"upgrade", "--set", "global.tag=0.1.1"}, "0.1.1", false},
		{[]string{"upgrade", "--set", "ztunnel.image=culvert.local/ztunnel:no-such-tag"}, "0.1.1", true},
		{[]string{"upgrade", "--rollback"}, "0.1.0", false},
	} {
		start := time.Now()
		r := upgrade(step.args, step.fails)
		t.Logf("culvert %s: %.1f s\n%s%s", strings.Join(step.args, " "), time.Since(start).Seconds(), r.stdout, r.stderr)
		if (r.err != nil) != step.fails {
			t.Fatalf("%v", r.err)
		}
		if step.fails && (!strings.Contains(r.stderr, "taken back") || !strings.Contains(r.stderr, "ImagePull") || !strings.Contains(r.stderr, "hint:")) {
			t.Errorf("the error does not say what happened, why, and what to do:\n%s", r.stderr)
		}
		images := must(t, "get", "pods", "-n", "culvert-system", "-l", "app=ztunnel", "-o", "jsonpath={..containers[*].image}")
		if strings.Count(images, ":"+step.version) < 2 {
			t.Errorf("images of ztunnels: %s", images)
		}
		load.check(t)
	}
	load.stop(t)
}

// upgrade runs `culvert upgrade`. One that is to fail is given little time first, and
// more when the kubelets have not come to pulling the image in it.
func upgrade(args []string, fails bool) (r result) {
	limits := []time.Duration{limit}
	if fails {
		limits = []time.Duration{20 * time.Second, time.Minute, limit}
	}
	for _, l := range limits {
		if r = run(the.culvert, append(slices.Clone(args), "--timeout", l.String())...); strings.Contains(r.stderr, "ImagePull") {
			break
		}
	}
	return r
}

// load is traffic that must not notice what happens to the mesh.
type load struct {
	stopped  atomic.Bool
	requests atomic.Int64

	requestsL7, lostL7 atomic.Int64 // through the waypoint, which is replaced as well

	all    sync.WaitGroup
	mu     sync.Mutex
	failed []string
}

// streams are pods that each hold one connection, past the waypoint: a waypoint that
// is replaced ends what it carries when its time is up, ztunnels do not.
var streams = []string{"stream-a", "stream-b", "stream-c"}

func startLoad(t *testing.T) *load {
	t.Helper()
	for i, name := range streams {
		apply(t, pod(name, fmt.Sprintf("node%d", 1+i%2), "hold", "direct."+namespace+":9090"))
	}
	must(t, "wait", "-n", namespace, "--for=condition=Ready", "pods", "--all", "--timeout="+limit.String())
	for _, name := range streams {
		eventually(t, name, func() error {
			if !strings.Contains(must(t, "logs", "-n", namespace, name), "line 3") {
				return errors.New("nothing came back yet")
			}
			return nil
		})
	}
	l := &load{}
	for _, from := range []string{"client", "other"} {
		l.all.Go(func() {
			for !l.stopped.Load() {
				if r := get(from, "http://direct."+namespace+":8080/load", 20); r.err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, r.stderr)
					l.mu.Unlock()
				}
				l.requests.Add(20)
			}
		})
	}
	l.all.Go(func() { // is told, and judged where waypoints are replaced
		for !l.stopped.Load() {
			if get("client", web+"load", 1).err != nil {
				l.lostL7.Add(1)
			}
			l.requestsL7.Add(1)
		}
	})
	t.Cleanup(func() { l.stopped.Store(true); l.all.Wait() })
	return l
}

// check fails the test for what was lost so far.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.failed {
		t.Errorf("a request was lost: %s", f)
	}
	l.failed = nil
	for _, name := range streams {
		if phase := must(t, "get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.phase}"); phase != "Running" {
			t.Errorf("the stream of %s broke: %s: %s", name, phase, must(t, "logs", "-n", namespace, name, "--tail=2"))
		}
	}
}

func (l *load) stop(t *testing.T) {
	l.stopped.Store(true)
	l.all.Wait()
	for _, name := range streams {
		before := must(t, "logs", "-n", namespace, name, "--tail=1")
		eventually(t, name+" goes on", func() error {
			if must(t, "logs", "-n", namespace, name, "--tail=1") == before {
				return errors.New("still at " + before)
			}
			return nil
		})
	}
	l.check(t)
	t.Logf("%d requests and %d streams; through the waypoint, which was replaced as well: %d of %d requests lost",
		l.requests.Load(), len(streams), l.lostL7.Load(), l.requestsL7.Load())
	must(t, append([]string{"delete", "pod", "-n", namespace}, streams...)...)
}

// TestUninstall: pods go on, in the clear; nothing of the mesh is left on nodes or in
// the API but the definitions of what users wrote, and with --purge not those.
func TestUninstall(t *testing.T) {
	t.Log(culvert(t, "uninstall", "--timeout", limit.String()))
	eventually(t, "a request after the mesh", func() error { return get("client", web, 1).err })
	if read := capture(t, func() error { return get("client", web+marker, 1).err }); read.Contains(marker) == 0 {
		t.Error("the request was not in the clear: rules are left in the pod")
	}
	for _, node := range []string{"node1", "node2"} {
		for _, c := range []struct{ what, path, bad string }{
			{"the plugin's program", "/opt/cni/bin", "culvert-cni"},
			{"the plugin's entry", "/etc/cni/net.d", "culvert"},
		} {
			r := run(the.kube, "exec", node, "grep", "-rlE", c.bad, c.path)
			if r.stdout != "" && c.path == "/etc/cni/net.d" {
				t.Errorf("%s: %s is left: %s", node, c.what, r.stdout)
			}
			if list := run(the.kube, "exec", node, "ls", c.path).stdout; strings.Contains(list, "culvert") {
				t.Errorf("%s: %s is left: %s", node, c.what, list)
			}
		}
		if list := run(the.kube, "exec", node, "ls", "-A", "/var/run/ztunnel", "/var/run/culvert-cni").stdout; strings.Contains(list, "sock") {
			t.Errorf("%s: sockets are left: %s", node, list)
		}
	}
	for _, kind := range []string{"clusterrole", "clusterrolebinding", "validatingwebhookconfiguration", "gatewayclass", "priorityclass", "namespace"} {
		if list := must(t, "get", kind, "-o", "name"); strings.Contains(list, "culvert") || strings.Contains(list, "ztunnel") || strings.Contains(list, "waypoint") {
			t.Errorf("%s are left:\n%s", kind, list)
		}
	}
	if list := must(t, "get", "configmap", "-A", "--field-selector", "metadata.name=istio-ca-root-cert", "-o", "name"); list != "" {
		t.Errorf("trust bundles are left: %s", list)
	}
	if list := must(t, "get", "pods", "-A", "-o", `jsonpath={..metadata.annotations.ambient\.istio\.io/redirection}`); list != "" {
		t.Errorf("annotations are left: %s", list)
	}
	if list := must(t, "get", "deploy,svc,sa", "-n", namespace, "-l", "gateway.networking.k8s.io/gateway-name", "-o", "name"); list != "" {
		t.Errorf("a waypoint is left: %s", list)
	}
	if list := must(t, "get", "nodes", "-o", "jsonpath={..conditions[*].type}"); strings.Contains(list, "culvert") {
		t.Errorf("node conditions are left: %s", list)
	}
	if must(t, "get", "gateway", "-n", namespace, "-o", "name") == "" {
		t.Error("what a user wrote is gone")
	}
	culvert(t, "uninstall", "--purge", "--timeout", limit.String())
	if list := must(t, "get", "crd", "-o", "name"); strings.Contains(list, "istio.io") || strings.Contains(list, "gateway.networking") {
		t.Errorf("definitions are left: %s", list)
	}
}

// TestInstallAgain: right after a mesh was taken away another one comes. It waits for
// the end of the old one's namespace, and is whole: with another authority, whose root
// certificate everybody has at once.
func TestInstallAgain(t *testing.T) {
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+meshNamespace+"}\n")
	apply(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: held, namespace: "+meshNamespace+", finalizers: [culvert.test/held]}\n")
	release := func() result {
		return kubectl("patch", "configmap", "held", "-n", meshNamespace, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	}
	t.Cleanup(func() { release() })
	must(t, "delete", "namespace", meshNamespace, "--wait=false")
	var out lockedBuffer
	install := exec.Command(the.culvert, "install", "--timeout", limit.String())
	install.Stdout, install.Stderr = &out, &out
	if err := install.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the install waits for the namespace", func() error {
		if said := out.String(); !strings.Contains(said, "namespace "+meshNamespace+" is being deleted") {
			return errors.New(said)
		}
		return nil
	})
	if r := release(); r.err != nil {
		t.Error(r.err)
	}
	if err := install.Wait(); err != nil {
		t.Fatalf("culvert install: %v\n%s\n%s", err, out.String(), story())
	}
	must(t, "label", "namespace", namespace, "istio.io/use-waypoint-") // its Gateway went with the definitions
	eventually(t, "check", func() error { return run(the.culvert, "check").err })
	eventually(t, "a request", func() error { return get("client", web, 1).err })
}

// lockedBuffer is a buffer that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
