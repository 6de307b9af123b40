//go:build kube

package installed

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/integration/faults"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

const (
	stageNS   = "installed-faults"
	outsideNS = "installed-outside"
	system    = "culvert-system"
)

// scene is what the load goes through: a client on node 1, an application of three
// replicas on both nodes that ends at once on SIGTERM, and one on node 2 that stays.
const scene = `
apiVersion: v1
kind: Namespace
metadata: {name: ` + stageNS + `, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ` + outsideNS + `}
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: ` + stageNS + `}
spec: {selector: {app: app}, ports: [{name: tcp, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: steady, namespace: ` + stageNS + `}
spec: {selector: {app: steady}, ports: [{name: tcp, port: 9090}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: ` + stageNS + `}
spec:
  replicas: 3
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      containers:
      - {name: main, image: "` + workload + `", imagePullPolicy: Never, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: steady, namespace: ` + stageNS + `}
spec:
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - {name: main, image: "` + workload + `", imagePullPolicy: Never, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
`

// strict lets nothing in that is not of the mesh.
const strict = `---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: ` + stageNS + `}
spec: {mtls: {mode: STRICT}}
`

// pausing is a pod that does nothing: what it sends is sent by whoever enters its
// network namespace.
func pausing(namespace, name, node, account string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[4]s, namespace: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
spec:
  nodeName: %[3]s
  serviceAccountName: %[4]s
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers: [{name: main, image: "%[5]s", imagePullPolicy: Never, args: [pause]}]
`, namespace, name, node, account, workload)
}

// stage is where faults happen.
type stage struct {
	t           *testing.T
	api         *apiServer
	client      *netns.NS // of the pod that the load comes from
	app, steady netip.AddrPort
	away        time.Duration // of what is away for a while
	made        int           // pods, for their names
}

// setTheStage installs the mesh when it is not there, and makes the scene.
func setTheStage(t *testing.T, away time.Duration) *stage {
	t.Helper()
	if kubectl("get", "daemonset", "ztunnel", "-n", system).err != nil {
		t.Log(culvert(t, "install", "--timeout", limit.String()))
	}
	s := &stage{t: t, api: newAPIServer(t), away: away}
	t.Cleanup(func() {
		kubectl("delete", "namespace", stageNS, outsideNS, "--ignore-not-found", "--timeout=60s")
		if s.client != nil {
			s.client.Close()
		}
	})
	apply(t, scene+strict+pausing(stageNS, "client", "node1", "client"))
	must(t, "rollout", "status", "-n", stageNS, "deployment/app", "--timeout=90s")
	must(t, "rollout", "status", "-n", stageNS, "deployment/steady", "--timeout=90s")
	s.awaitReady(stageNS, "client", limit)
	s.client = s.enter(stageNS, "client")
	s.app, s.steady = s.service("app"), s.service("steady")
	for _, to := range []netip.AddrPort{s.app, s.steady} {
		eventually(t, "the scene", func() error { return ask(s.client, to) })
	}
	return s
}

func (s *stage) service(name string) netip.AddrPort {
	ip := must(s.t, "get", "service", "-n", stageNS, name, "-o", "jsonpath={.spec.clusterIP}")
	return netip.AddrPortFrom(netip.MustParseAddr(ip), 9090)
}

// load is of every fault: 200 new connections a second, and 16 streams.
func (s *stage) load(streamRate int) faults.Load {
	from := func(to netip.AddrPort) faults.Dialer {
		return func(ctx context.Context) (net.Conn, error) {
			c, err := s.client.Dial(ctx, to, netns.DialOptions{})
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	return faults.Load{Connect: from(s.app), Stream: from(s.steady), Rate: *faultRate, StreamRate: streamRate}
}

// spoken is in every message, of the load too.
const spoken = "message "

// ask sends a message from a namespace to an echo server, and reads it back.
func ask(from *netns.NS, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, spoken); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, len(spoken)))
	return err
}

// podState is what the rows look at of a pod.
type podState struct {
	Metadata struct {
		Name, UID   string
		Annotations map[string]string
		Labels      map[string]string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase, PodIP string
		StartTime    string // when its kubelet took it up; empty before
		Conditions   []struct{ Type, Status string }
	}
}

func (p podState) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (s *stage) pod(namespace, name string) (p podState, err error) {
	return p, s.api.get("/api/v1/namespaces/"+namespace+"/pods/"+name, &p)
}

func (s *stage) podsOf(namespace, selector string) []podState {
	s.t.Helper()
	var list struct{ Items []podState }
	if err := s.api.get("/api/v1/namespaces/"+namespace+"/pods?labelSelector="+selector, &list); err != nil {
		s.t.Fatal(err)
	}
	return list.Items
}

// awaitReady waits until a pod is ready and says how long that took; past the limit
// the pod is stuck, which fails the test.
func (s *stage) awaitReady(namespace, name string, limit time.Duration) time.Duration {
	s.t.Helper()
	start := time.Now()
	for {
		p, err := s.pod(namespace, name)
		if err == nil && p.ready() {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			s.t.Errorf("pod %s/%s is stuck: not ready in %v, %s, %v\n%s", namespace, name, limit, p.Status.Phase, err,
				kubectl("get", "events", "-n", namespace, "--field-selector", "involvedObject.name="+name).stdout)
			return limit
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// newPod makes a pod that does nothing, with an account of its own or another's.
func (s *stage) newPod(namespace, node, account string) string {
	s.t.Helper()
	s.made++
	name := fmt.Sprintf("new-%d", s.made)
	if account == "" {
		account = name
	}
	apply(s.t, pausing(namespace, name, node, account))
	return name
}

func (s *stage) removePods(namespace string, names ...string) {
	must(s.t, append([]string{"delete", "pod", "-n", namespace, "--wait=false"}, names...)...)
}

// enter opens the network namespace of a running pod. The caller closes it.
func (s *stage) enter(namespace, name string) *netns.NS {
	s.t.Helper()
	p, err := s.pod(namespace, name)
	if err != nil {
		s.t.Fatal(err)
	}
	pids := podProcesses(p.Metadata.UID, "workload")
	if len(pids) == 0 {
		s.t.Fatalf("pod %s/%s has no process", namespace, name)
	}
	ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pids[0]))
	if err != nil {
		s.t.Fatal(err)
	}
	return ns
}

// podOn is the ready pod of a DaemonSet on a node.
func (s *stage) podOn(node, app string) podState {
	s.t.Helper()
	for _, p := range s.podsOf(system, "app="+app) {
		if p.Spec.NodeName == node && p.ready() {
			return p
		}
	}
	s.t.Fatalf("%s has no ready pod on %s", app, node)
	return podState{}
}

// matching are the processes that a condition holds of.
func matching(program string, ok func(dir string) bool) (pids []int) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || strings.TrimSpace(string(name)) != program || !ok(dir) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// podProcesses are a pod's processes that run a program: its control groups name it.
func podProcesses(uid, program string) []int {
	return matching(program, func(dir string) bool {
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		return err == nil && bytes.Contains(groups, []byte("pod"+uid))
	})
}

// placeProcesses are a node's own processes, or the control plane's.
func placeProcesses(place, program string) []int {
	var want, have syscall.Stat_t
	if syscall.Stat(placeNamespace(place), &want) != nil {
		return nil
	}
	return matching(program, func(dir string) bool {
		return syscall.Stat(filepath.Join(dir, "ns/net"), &have) == nil && have.Ino == want.Ino
	})
}

func placeNamespace(place string) string {
	number := os.Getenv("CULVERT_KUBE_NUMBER")
	if number == "" {
		number = "0"
	}
	return "/run/netns/ckube" + number + "-" + place
}

// first says whether a process is the first of its container.
func first(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(numbers)
			return fields[len(fields)-1] == "1"
		}
	}
	return false
}

// kill ends processes at once, and reports which there were.
func kill(pids []int) []int {
	return slices.DeleteFunc(pids, func(pid int) bool { return syscall.Kill(pid, syscall.SIGKILL) != nil })
}

// keepDead kills what find finds, as often as it comes back, until ctx ends.
func keepDead(ctx context.Context, find func() []int) {
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		kill(find())
	}
}

// await waits until a condition holds, and says how long that took. It fails the
// test when it does not.
func (s *stage) await(what string, ok func() bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			s.t.Fatalf("not in %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// apiServer is the cluster's, asked without a program in between: the moment of its
// answer is what a change is measured from.
type apiServer struct {
	url    string
	client *http.Client
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert string `json:"client-certificate-data"`
				Key  string `json:"client-key-data"`
			}
		}
	}
	raw := must(t, "config", "view", "--raw", "--flatten", "-o", "json")
	if err := json.Unmarshal([]byte(raw), &config); err != nil {
		t.Fatal(err)
	}
	decode := func(s string) []byte {
		out, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	pair, err := tls.X509KeyPair(decode(config.Users[0].User.Cert), decode(config.Users[0].User.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(decode(config.Clusters[0].Cluster.CA))
	return &apiServer{config.Clusters[0].Cluster.Server, &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}}}
}

func (a *apiServer) get(path string, into any) error { return a.do(http.MethodGet, path, nil, into) }

func (a *apiServer) do(method, path string, body []byte, into any) error {
	req, err := http.NewRequest(method, a.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, content)
	}
	if into == nil {
		return nil
	}
	return errors.Join(json.Unmarshal(content, into))
}
