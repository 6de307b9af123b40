//go:build kube

package installed

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/integration/faults"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// allFaults are the rows, in the order in which they are done.
var allFaults = []fault{
	{name: "nothing", ours: "0 · 0", short: true, do: func(*stage, *row) { time.Sleep(3 * time.Second) }},
	{name: "ztunnel DaemonSet rollout", upstream: "0 · all 16, when the 26 s drain ends", ours: "0 · 0", short: true, do: rollProxies},
	{name: "ztunnel `kill -9` on the server's node", upstream: "104–260 in 0.5–1.3 s · 16", ours: "0 (they wait ≤ 1 s) · 16", breaks: true, short: true, do: killProxy(1)},
	{name: "ztunnel `kill -9`, a second time within a second", upstream: "2,300–2,700 in 12–13 s (container back-off) · 16", ours: "0 (they wait ≤ 1 s) · 16", breaks: true, do: killProxy(2)},
	{name: "ztunnel's whole container `kill -9`, twice: container back-off", upstream: "2,300–2,700 in 12–13 s · 16", ours: "0 · 16", breaks: true, do: killContainer},
	{name: "ztunnel killed while the control plane is away", upstream: "7,246: the node is out until it returns · 16", ours: "0 · 16", breaks: true, do: killWithoutControl},
	{name: "control plane away", upstream: "0 · 0 in 66 s; a new pod turns Ready but its traffic hangs, up to 14 s past the return",
		ours: "0 · 0; a new pod works if its node holds its service account's certificate, else it fails fast with a reason", dies: true, do: controlAway},
	{name: "node agent away (killed as often as it starts), pods start meanwhile", upstream: "pods outside the mesh fail to start too; mesh pods stuck 15–39 s",
		ours: "0 · 0; outside pods start; mesh pods ≤ 5 s after its return", do: agentAway},
	{name: "API server away (killed as often as it starts)", upstream: "–", ours: "0 · 0; a new pod starts afterwards", do: apiAway},
	{name: "kubelet restarted", upstream: "–", ours: "0 · 0; a new pod starts", short: true, do: restartKubelet},
	{name: "CNI configuration rewritten, 3 times, pods start meanwhile", upstream: "–", ours: "0 · 0; new pods are in the mesh", short: true, do: rewriteCNI},
	{name: "namespace unlabelled and labelled live", upstream: "1–6 · 16 / 24 hang 5 s · 16 hang", ours: "0 · 0", clear: true, do: relabelPermissive},
	{name: "the same while mutual TLS is STRICT", upstream: "–", ours: "0 · 0", clear: true, short: true, do: relabel},
	{name: "new DENY policy, 5 times", upstream: "90 ms; but open connections go on when the policy selects by label", ours: "≤ 50 ms (the median); open connections end too",
		breaks: true, expected: true, streamRate: 100, short: true, do: deny},
	{name: "rolling restart of an application that exits at once on SIGTERM (3 replicas)", upstream: "10–17 of 5,200 (without mesh 21–30) · –", ours: "0 · 0", do: rollApplication},
	{name: "waypoint's Deployment rolled, requests through it", upstream: "–", ours: "0 · 0; 0 requests", short: true, do: rollWaypoint},
	{name: "every program of the mesh rolled at once, requests through a waypoint", upstream: "–", ours: "0 · 0; 0 requests", do: rollEverything},
	{name: "ztunnel DaemonSet rollout beside a waypoint's idle connections", upstream: "–", ours: "0 · 0; old ztunnels end with the load", do: rollBesideWaypoint},
	{name: "clocks differ by a minute", upstream: "–", ours: "0 · 0; pods of new accounts work", do: skewClocks},
	{name: "ztunnel's token expired", upstream: "–", ours: "0 · 0; a pod of a new service account fails fast, and works when the token is renewed", do: expireToken},
	{name: "a process on the pod's own node, plaintext, STRICT", upstream: "reaches every port", ours: "only declared probe ports, only from the kubelet's address", short: true, do: ownNode},
	// Afterwards the application is on one node: the last row.
	{name: "node drained and taken back", upstream: "–", ours: "0 · 16 (their server's pod is evicted)", breaks: true, do: drain},
}

// rollProxies replaces both nodes' ztunnels. The old ones live on as long as they
// have connections, so a node is through when its newest pod is ready.
func rollProxies(s *stage, r *row) {
	old := map[string]bool{}
	for _, p := range s.podsOf(system, "app=ztunnel") {
		old[p.Metadata.Name] = true
	}
	must(s.t, "rollout", "restart", "-n", system, "daemonset/ztunnel")
	r.took("both nodes through after", s.await("each node has a new ztunnel", func() bool {
		n := 0
		for _, p := range s.podsOf(system, "app=ztunnel") {
			if !old[p.Metadata.Name] && p.ready() {
				n++
			}
		}
		return n == 2
	}), 0)
}

// proxies are the processes of a node's ztunnel that carry traffic: not the first of
// the container, which starts them again.
func (s *stage) proxies(uid string) (pids []int) {
	for _, pid := range podProcesses(uid, "ztunnel") {
		if !first(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killProxy kills the server's ztunnel, so many times within a second.
func killProxy(times int) func(*stage, *row) {
	return func(s *stage, r *row) {
		uid := s.podOn("node2", "ztunnel").Metadata.UID
		for range times {
			s.killProxyOf(uid)
			time.Sleep(500 * time.Millisecond)
		}
		r.waited(s)
	}
}

// killProxyOf returns when there is another process.
func (s *stage) killProxyOf(uid string) {
	killed := kill(s.proxies(uid))
	if len(killed) == 0 {
		s.t.Fatal("ztunnel has no process to kill")
	}
	s.await("ztunnel is started again", func() bool {
		now := s.proxies(uid)
		return len(now) > 0 && now[0] != killed[0]
	})
}

// waited notes how long the slowest new connection took: it is what "they wait" means.
func (r *row) waited(*stage) {
	r.after = func(rep *faults.Report) { r.took("slowest new connection", rep.Slowest, 0) }
}

// killContainer kills the first process of ztunnel's container too: it is the kubelet
// then that starts it again, the second time after ten seconds.
func killContainer(s *stage, r *row) {
	p := s.podOn("node2", "ztunnel")
	start := time.Now()
	for range 2 {
		killed := kill(podProcesses(p.Metadata.UID, "ztunnel"))
		s.await("the container is started again", func() bool {
			now := s.proxies(p.Metadata.UID)
			return len(now) > 0 && len(killed) > 0 && now[0] != killed[len(killed)-1]
		})
		time.Sleep(500 * time.Millisecond)
	}
	r.took("both restarts", time.Since(start), 0)
	eventually(s.t, "the node works", func() error { return ask(s.client, s.steady) })
	r.waited(s)
}

// withoutControl does something while no control plane runs.
func (s *stage) withoutControl(do func()) {
	t := s.t
	replicas := must(t, "get", "deployment", "culvert-controlplane", "-n", system, "-o", "jsonpath={.spec.replicas}")
	scale := func(n string) {
		must(t, "scale", "deployment", "culvert-controlplane", "-n", system, "--replicas="+n)
	}
	defer func() {
		scale(replicas)
		must(t, "rollout", "status", "-n", system, "deployment/culvert-controlplane", "--timeout=90s")
	}()
	scale("0")
	must(t, "delete", "pods", "-n", system, "-l", "app=culvert-controlplane", "--grace-period=0", "--force", "--ignore-not-found")
	s.await("the control plane is away", func() bool { return len(matchingControl()) == 0 })
	do()
}

// matchingControl are the control plane's processes in pods.
func matchingControl() []int {
	return matching("controlplane", func(dir string) bool {
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		mine := strings.TrimSuffix(filepath.Base(placeNamespace("node")), "node")
		return err == nil && strings.Contains(string(groups), mine) && strings.Contains(string(groups), "pod")
	})
}

func killWithoutControl(s *stage, r *row) {
	uid := s.podOn("node2", "ztunnel").Metadata.UID
	s.withoutControl(func() {
		s.killProxyOf(uid)
		time.Sleep(s.away / 2)
	})
	r.waited(s)
}

// controlAway starts pods meanwhile: one whose service account's certificate its node
// holds, and one of an account that nobody has heard of. And a replica of the
// application is deleted, which nobody tells the ztunnels.
func controlAway(s *stage, r *row) {
	var known, unknown string
	s.withoutControl(func() {
		start := time.Now()
		known, unknown = s.newPod(stageNS, "node1", "client"), s.newPod(stageNS, "node1", "")
		r.took("a new pod was ready in", s.awaitReady(stageNS, known, limit), 0)
		s.awaitReady(stageNS, unknown, limit)
		s.tells(r, known, "of a known account", true)
		s.tells(r, unknown, "of an unknown account", false)
		replica := s.podsOf(stageNS, "app=app")[0]
		s.removePods(stageNS, replica.Metadata.Name)
		r.note("a replica of the application on %s was deleted and replaced", replica.Spec.NodeName)
		time.Sleep(time.Until(start.Add(s.away)))
	})
	back := time.Now()
	s.works(unknown)
	r.took("the unknown account's pod works after the return in", time.Since(back), 5*time.Second)
	s.removePods(stageNS, known, unknown)
}

// tells asks from a pod, and notes what became of it: it works, or fails within two
// seconds.
func (s *stage) tells(r *row, pod, what string, works bool) {
	ns := s.enter(stageNS, pod)
	defer ns.Close()
	start := time.Now()
	err := ask(ns, s.steady)
	switch took := time.Since(start); {
	case err == nil:
		r.note("a new pod %s works (%s)", what, short(took))
	case works:
		r.miss("a new pod %s does not work: %v after %s", what, err, short(took))
	case took > 2*time.Second:
		r.miss("a new pod %s hangs for %s: %v", what, short(took), err)
	default:
		r.note("a new pod %s fails after %s (%v)", what, short(took), err)
	}
}

// works waits until a pod's traffic does.
func (s *stage) works(pod string) {
	ns := s.enter(stageNS, pod)
	defer ns.Close()
	eventually(s.t, "traffic of "+pod, func() error { return ask(ns, s.steady) })
}

// agentAway kills the agent of node 1 as often as it starts, and starts pods
// meanwhile. Its container waits longer and longer.
func agentAway(s *stage, r *row) {
	agent := s.podOn("node1", "culvert-cni")
	find := func() []int { return podProcesses(agent.Metadata.UID, "culvert-agent") }
	ctx, back := context.WithCancel(s.t.Context())
	defer back()
	var killer sync.WaitGroup
	killer.Go(func() { keepDead(ctx, find) })
	s.await("the agent is away", func() bool { return len(find()) == 0 })
	outside, inside := s.newPod(outsideNS, "node1", ""), s.newPod(stageNS, "node1", "")
	r.took("outside pod ready in", s.awaitReady(outsideNS, outside, limit), 0)
	back()
	killer.Wait()
	s.await("the agent is back", func() bool { return len(find()) > 0 })
	r.took("mesh pod ready after the agent's return in", s.awaitReady(stageNS, inside, limit), 5*time.Second)
	s.works(inside)
	s.removePods(outsideNS, outside)
	s.removePods(stageNS, inside)
}

func apiAway(s *stage, r *row) {
	ctx, cancel := context.WithTimeout(s.t.Context(), s.away)
	defer cancel()
	keepDead(ctx, func() []int { return placeProcesses("control", "kube-apiserver") })
	back := time.Now()
	s.await("the API server is back", func() bool { return s.api.get("/api/v1/nodes/node1", nil) == nil })
	r.took("the API server was back after", time.Since(back), 0)
	var pod string
	eventually(s.t, "a pod is made", func() error {
		s.made++
		pod = fmt.Sprintf("new-%d", s.made)
		return runFor(limit, pausing(stageNS, pod, "node1", pod), the.kube, "kubectl", "apply", "-f", "-").err
	})
	// A kubelet comes back at an interval of its own, which can be a minute and a half:
	// no pod is stuck before it has taken it up.
	back = time.Now()
	for p := (podState{}); p.Status.StartTime == "" && time.Since(back) < 3*limit; time.Sleep(20 * time.Millisecond) {
		p, _ = s.pod(stageNS, pod)
	}
	r.took("the kubelet took up a new pod after", time.Since(back), 0)
	r.took("which was ready in", s.awaitReady(stageNS, pod, limit), 0)
	s.works(pod)
	s.removePods(stageNS, pod)
}

func restartKubelet(s *stage, r *row) {
	was := kill(placeProcesses("node2", "kubelet"))
	if len(was) == 0 {
		s.t.Fatal("no kubelet on node2")
	}
	pod := s.newPod(stageNS, "node2", "")
	r.took("a pod made meanwhile was ready in", s.awaitReady(stageNS, pod, limit), 0)
	s.works(pod)
	s.removePods(stageNS, pod)
}

// drain evicts what can be evicted from the server's node. The DaemonSets stay.
func drain(s *stage, r *row) {
	start := time.Now()
	defer must(s.t, "uncordon", "node2")
	must(s.t, "drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
	r.took("drained in", time.Since(start), 0)
	must(s.t, "uncordon", "node2")
	must(s.t, "rollout", "status", "-n", stageNS, "deployment/steady", "--timeout=90s")
	eventually(s.t, "the server is back", func() error { return ask(s.client, s.steady) })
}

// rewriteCNI does what a network's own installer does when it starts again.
func rewriteCNI(s *stage, r *row) {
	file, content := s.cniConfiguration("node2")
	bare := withoutPlugin(s, content)
	var names []string
	for range 3 {
		names = append(names, s.newPod(stageNS, "node2", ""))
		if err := os.WriteFile(file, bare, 0o644); err != nil {
			s.t.Fatal(err)
		}
		r.took("the plugin was back in", s.await("the plugin is back", func() bool {
			now, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(now), "culvert-cni")
		}), 0)
	}
	for _, name := range names {
		r.took("ready in", s.awaitReady(stageNS, name, limit), 0)
		s.await(name+" is in the mesh", func() bool { p, err := s.pod(stageNS, name); return err == nil && inMesh(p) })
		s.works(name)
	}
	s.removePods(stageNS, names...)
}

// cniConfiguration is the file that names the plugin on a node, seen from here.
func (s *stage) cniConfiguration(node string) (file string, content []byte) {
	s.t.Helper()
	dir := s.nodeRoot(node, "/etc/cni/net.d")
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".conflist") {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, path))
		if strings.Contains(string(text), "culvert-cni") {
			file, content = filepath.Join(dir, path), text
		}
		return err
	})
	if err != nil || file == "" {
		s.t.Fatalf("no configuration on %s names the plugin: %v", node, err)
	}
	return file, content
}

// nodeRoot is a path of a node, seen from here.
func (s *stage) nodeRoot(node, path string) string {
	s.t.Helper()
	pids := placeProcesses(node, "kubelet")
	if len(pids) == 0 {
		s.t.Fatalf("no kubelet on %s", node)
	}
	return fmt.Sprintf("/proc/%d/root%s", pids[0], path)
}

func withoutPlugin(s *stage, content []byte) []byte {
	var config map[string]any
	if err := json.Unmarshal(content, &config); err != nil {
		s.t.Fatal(err)
	}
	var rest []any
	for _, p := range config["plugins"].([]any) {
		if p.(map[string]any)["type"] != "culvert-cni" {
			rest = append(rest, p)
		}
	}
	config["plugins"] = rest
	out, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func inMesh(p podState) bool {
	return p.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled"
}

// relabelPermissive is relabel where plaintext is let in, as it is by default.
func relabelPermissive(s *stage, r *row) {
	must(s.t, "delete", "peerauthentication", "strict", "-n", stageNS)
	defer apply(s.t, strict)
	time.Sleep(time.Second)
	relabel(s, r)
}

// relabel takes the namespace out of the mesh and brings it back: clients and servers
// one after another, on both nodes.
func relabel(s *stage, r *row) {
	all := func(in bool) func() bool {
		return func() bool {
			for _, p := range s.podsOf(stageNS, "") {
				if inMesh(p) != in {
					return false
				}
			}
			return true
		}
	}
	must(s.t, "label", "namespace", stageNS, "istio.io/dataplane-mode-")
	r.took("all pods out in", s.await("every pod is outside", all(false)), 0)
	s.await("a client outside may call", func() bool { return ask(s.client, s.steady) == nil })
	time.Sleep(2 * time.Second)
	must(s.t, "label", "namespace", stageNS, "istio.io/dataplane-mode=ambient")
	r.took("and in again in", s.await("every pod is in the mesh", all(true)), 0)
	time.Sleep(2 * time.Second)
}

func rollApplication(s *stage, r *row) {
	start := time.Now()
	must(s.t, "rollout", "restart", "-n", stageNS, "deployment/app")
	must(s.t, "rollout", "status", "-n", stageNS, "deployment/app", "--timeout=90s")
	r.took("rolled in", time.Since(start), 0)
}

// expireToken puts one that ended long ago in the place of node 1's ztunnel's.
func expireToken(s *stage, r *row) {
	uid := s.podOn("node1", "ztunnel").Metadata.UID
	file := s.nodeRoot("node1", "/var/lib/kubelet/pods/"+uid+"/volumes/kubernetes.io~projected/istio-token/istio-token")
	good, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	restore := func() {
		if err := os.WriteFile(file, good, 0o644); err != nil {
			s.t.Error(err)
		}
	}
	defer restore()
	if err := os.WriteFile(file, expired(s.t, string(good)), 0o644); err != nil {
		s.t.Fatal(err)
	}
	pod := s.newPod(stageNS, "node1", "")
	r.took("a new pod was ready in", s.awaitReady(stageNS, pod, limit), 0)
	s.tells(r, pod, "of a new account", false)
	restore()
	start := time.Now()
	s.works(pod)
	r.took("it works after the token is renewed in", time.Since(start), 5*time.Second)
	s.removePods(stageNS, pod)
}

// ownNode tries the server's ports from its own node and from the other.
func ownNode(s *stage, r *row) {
	server := s.podsOf(stageNS, "app=steady")[0]
	for _, c := range []struct {
		node  string
		port  uint16
		opens bool
	}{{"node2", 8080, true}, {"node2", 9090, false}, {"node1", 8080, false}, {"node1", 9090, false}} {
		to := netip.AddrPortFrom(netip.MustParseAddr(server.Status.PodIP), c.port)
		got := s.reaches(c.node, to)
		r.note("from %s port %d %s", c.node, c.port, map[bool]string{true: "answers", false: "does not answer"}[got])
		if got != c.opens {
			r.miss("from %s port %d: answers %v, want %v", c.node, c.port, got, c.opens)
		}
	}
}

// reaches says whether a process on a node gets an answer from a pod's port.
func (s *stage) reaches(node string, to netip.AddrPort) bool {
	s.t.Helper()
	ns, err := netns.Open(placeNamespace(node))
	if err != nil {
		s.t.Fatal(err)
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, make([]byte, 4))
	return err == nil
}

// expired is a token with the same claims whose time ended an hour ago, signed with
// the cluster's own key.
func expired(t *testing.T, token string) []byte {
	t.Helper()
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		t.Fatal("the token has no three parts")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-13 * time.Hour).Unix()
	claims["iat"], claims["nbf"], claims["exp"] = then, then, then+12*3600
	if raw, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(raw)
	digest := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, accountsKey(t), digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)
	return []byte(signed + "." + base64.RawURLEncoding.EncodeToString(signature))
}

// accountsKey is what the cluster signs service accounts' tokens with.
func accountsKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	where := run(the.kube, "run", "sh", "-c", "echo $KUBECONFIG")
	if where.err != nil {
		t.Fatal(where.err)
	}
	content, err := os.ReadFile(filepath.Join(filepath.Dir(strings.TrimSpace(where.stdout)), "accounts.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the key is a %T", key)
	}
	return signer
}
