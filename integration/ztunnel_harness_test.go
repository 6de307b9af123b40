package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	"github.com/culvert-mesh/culvert/pkg/zds"
	"github.com/culvert-mesh/culvert/ztunnel/app"
)

// testProcess is set in the environment of a test binary that is to be a program.
const testProcess = "CULVERT_TEST_PROCESS"

// patience bounds every wait in these tests; reaching it is a failure.
const patience = 2 * time.Minute

// field is one network with pods, and the ztunnels that serve them. Each ztunnel
// is a process of its own in a namespace of its own, as on a node; it finds its
// pods by ZDS and the mesh by a file.
type field struct {
	t    testing.TB
	node *netnstest.Node
	dir  string

	program string   // of the ztunnels; "" = this one
	output  *os.File // of the ztunnels; nil = their log

	workloads, services, policies []string // of the mesh file, YAML
}

// pod is a pod of the field.
type pod struct {
	*netnstest.Pod
	name, node string // node "" = outside the mesh
}

func newField(t testing.TB) *field {
	return &field{t: t, node: netnstest.NewNode(t), dir: t.TempDir()}
}

// outside adds a pod that nobody captures and the mesh does not know.
func (f *field) outside(name string) *pod { return &pod{Pod: f.node.Pod(f.t), name: name} }

// pod adds a meshed pod; more is what its workload entry has beside the basics.
func (f *field) pod(name, node string, more ...string) *pod {
	f.t.Helper()
	return f.enrol(&pod{Pod: f.node.Pod(f.t), name: name, node: node}, more...)
}

// enrol makes a pod one of the mesh.
func (f *field) enrol(p *pod, more ...string) *pod {
	f.t.Helper()
	var ips []string
	for _, ip := range []netip.Addr{p.IP4, p.IP6} {
		if ip.IsValid() {
			ips = append(ips, strconv.Quote(ip.String()))
		}
	}
	entry := fmt.Sprintf(`- uid: Kubernetes//Pod/default/%s
  name: %[1]s
  namespace: default
  serviceAccount: %[1]s
  trustDomain: cluster.local
  clusterId: Kubernetes
  workloadName: %[1]s
  canonicalName: %[1]s
  canonicalRevision: latest
  workloadIps: [%[2]s]
  protocol: HBONE
  node: %[3]s
`, p.name, strings.Join(ips, ", "), p.node)
	if !strings.Contains(strings.Join(more, "\n"), "services:") {
		entry += "  services: {}\n"
	}
	for _, m := range more {
		entry += "  " + m + "\n"
	}
	f.workloads = append(f.workloads, entry)
	rules := redirect.Pod(redirect.Options{IPv6: p.IP6.IsValid()})
	if err := redirect.Apply(p.NS, rules); err != nil {
		f.t.Fatalf("redirect pod %s: %v", p.name, err)
	}
	return p
}

func (f *field) service(name, vip string, ports string) {
	f.services = append(f.services, fmt.Sprintf(`- name: %s
  namespace: default
  hostname: %[1]s.default.svc.cluster.local
  vips: ["/%s"]
  ports: %s
`, name, vip, ports))
}

func (f *field) policy(yaml string) { f.policies = append(f.policies, yaml) }

// allow adds a policy for the workloads that name it: only these service accounts.
func (f *field) allow(name string, accounts ...string) {
	var from []string
	for _, a := range accounts {
		from = append(from, "{namespace: default, serviceAccount: "+a+"}")
	}
	f.policy(fmt.Sprintf(`- name: %s
  namespace: default
  scope: WorkloadSelector
  action: Allow
  rules:
  - - - serviceAccounts: [%s]
`, name, strings.Join(from, ", ")))
}

// clientAndServer adds a pod on either of two nodes, the server with an echo at port
// 7000, and the nodes' agents.
func (f *field) clientAndServer() (client, server *pod, a1, a2 *agent) {
	f.t.Helper()
	client, server = f.pod("client", "node-1"), f.pod("server", "node-2")
	server.listen(f.t, 7000, echo)
	return client, server, f.agent("node-1", client), f.agent("node-2", server)
}

func (f *field) meshFile() string {
	list := func(name string, items []string) string {
		if len(items) == 0 {
			return name + ": []\n"
		}
		return name + ":\n" + strings.Join(items, "")
	}
	path := filepath.Join(f.dir, "mesh.yaml")
	text := list("workloads", f.workloads) + list("services", f.services) + list("policies", f.policies)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// agent is the node agent's end of ZDS.
type agent struct {
	server *zds.Server
	socket string
}

func (f *field) agent(node string, pods ...*pod) *agent {
	f.t.Helper()
	a := &agent{socket: filepath.Join(f.dir, node+".sock")}
	a.server = zds.NewServer(a.socket, zds.ServerConfig{Snapshot: func(context.Context) ([]zds.Workload, error) {
		var all []zds.Workload
		for _, p := range pods {
			ns, err := p.NS.Dup()
			if err != nil {
				return nil, err
			}
			all = append(all, zds.Workload{UID: mesh.PodUID("uid-" + p.name), NS: ns,
				Info: mesh.PodInfo{Name: p.name, Namespace: "default", ServiceAccount: p.name}})
		}
		return all, nil
	}})
	background(f.t, a.server.Run)
	return a
}

// background runs a part until the test ends.
func background(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("background part: %v", err)
		}
	})
}

// ztunnel is a running ztunnel process.
type ztunnel struct {
	t    testing.TB
	ns   *netns.NS
	cmd  *exec.Cmd
	log  *runtest.Buffer
	web  *http.Client
	done chan struct{}
	err  error // of the process, after done
}

// ztunnel starts a ztunnel for a node and waits until it is ready. ns may be that
// of a ztunnel to replace; nil makes one.
func (f *field) ztunnel(node string, a *agent, ns *netns.NS, environ ...string) *ztunnel {
	f.t.Helper()
	if ns == nil {
		ns = netnstest.New(f.t)
	}
	z := &ztunnel{t: f.t, ns: ns, log: &runtest.Buffer{}, done: make(chan struct{})}
	z.cmd = exec.Command("/proc/self/exe")
	if f.program != "" {
		z.cmd = exec.Command(f.program)
	}
	z.cmd.Env = append([]string{
		testProcess + "=ztunnel", "NODE_NAME=" + node, "INPOD_UDS=" + a.socket, "PATH=" + os.Getenv("PATH"),
		"LOCAL_XDS_PATH=" + f.meshFile(), "FAKE_CA=true", "XDS_ADDRESS=", "CONNECTION_TERMINATION_DEADLINE=5s",
	}, environ...)
	z.cmd.Stdout, z.cmd.Stderr = z.log, z.log
	if f.output != nil {
		z.cmd.Stdout, z.cmd.Stderr = f.output, f.output
	}
	if err := ns.Start(z.cmd); err != nil {
		f.t.Fatalf("start ztunnel: %v", err)
	}
	go z.wait()
	f.t.Cleanup(z.kill)
	z.web = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return ns.Dial(ctx, netip.MustParseAddrPort(addr), netns.DialOptions{})
		}}}
	z.until("ready", func() bool {
		return z.logged("ready to serve") || z.get("http://127.0.0.1:15021/healthz/ready") == "ready\n"
	})
	return z
}

func (z *ztunnel) wait() {
	z.err = z.cmd.Wait()
	close(z.done)
}

// term asks the process to drain; stop waits for its end as well.
func (z *ztunnel) term() { z.cmd.Process.Signal(syscall.SIGTERM) }

func (z *ztunnel) stop() error {
	z.term()
	select {
	case <-z.done:
		return z.err
	case <-time.After(patience):
		return errors.New("the process did not end")
	}
}

func (z *ztunnel) kill() {
	if err := z.stop(); err != nil {
		z.cmd.Process.Kill()
		<-z.done
		z.t.Errorf("ztunnel did not end well: %v", err)
	}
	if z.t.Failed() || testing.Verbose() {
		z.t.Logf("ztunnel's log:\n%s", z.log)
	}
}

// get returns the body of a page, or the error's text.
func (z *ztunnel) get(url string) string {
	resp, err := z.web.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

func (z *ztunnel) post(url string) {
	z.t.Helper()
	resp, err := z.web.Post(url, "", nil)
	if err != nil {
		z.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		z.t.Errorf("%s: %s", url, resp.Status)
	}
}

func (z *ztunnel) logged(pattern string) bool {
	return regexp.MustCompile(pattern).MatchString(z.log.String())
}

// wantLog waits for a log line that matches.
func (z *ztunnel) wantLog(pattern string) {
	z.t.Helper()
	z.until("a log line with "+pattern, func() bool { return z.logged(pattern) })
}

func (z *ztunnel) until(what string, cond func() bool) {
	z.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-z.done:
			z.t.Fatalf("ztunnel ended while waiting for %s: %v\n%s", what, z.err, z.log)
		case <-deadline:
			z.t.Fatalf("waited in vain for %s\n%s", what, z.log)
		}
	}
}

// metric returns the sum of the series of a metric whose labels contain all of the given.
func (z *ztunnel) metric(name string, labels ...string) float64 {
	var sum float64
	for line := range strings.Lines(z.get("http://127.0.0.1:15020/metrics")) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(series, name+"{") {
			continue
		}
		match := true
		for _, l := range labels {
			match = match && strings.Contains(series, l)
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil && match {
			sum += v
		}
	}
	return sum
}

// descriptors and goroutines of the process, to find leaks.
func (z *ztunnel) descriptors() int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", z.cmd.Process.Pid))
	if err != nil {
		z.t.Fatal(err)
	}
	return len(entries)
}

func (z *ztunnel) goroutines() int {
	var n int
	fmt.Sscanf(z.get("http://127.0.0.1:15000/debug/pprof/goroutine?debug=1"), "goroutine profile: total %d", &n)
	return n
}

// ztunnelProcess is the ztunnel process of the tests, with their race detector. It
// returns the status to exit with.
func ztunnelProcess() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := app.Main(ctx, nil, os.Environ(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		return 1
	}
	return 0
}

// listen serves TCP in a pod, each connection in a goroutine of its own.
func (p *pod) listen(t testing.TB, port uint16, serve func(*net.TCPConn)) {
	t.Helper()
	l, err := p.NS.Listen(context.Background(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
}

// echo tells the client's address in a line and then returns every byte.
func echo(c *net.TCPConn) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	fmt.Fprintf(c, "%s\n", from.Addr().Unmap())
	io.Copy(c, c)
	c.CloseWrite()
}

func (p *pod) dial(t testing.TB, addr netip.Addr, port uint16) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.NS.Dial(ctx, netip.AddrPortFrom(addr, port), netns.DialOptions{})
	if err != nil {
		t.Fatalf("dial from %s: %v", p.name, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// exchange dials an echo, sends hello and returns what came back: the address
// that the server saw.
func (p *pod) exchange(t testing.TB, addr netip.Addr, port uint16) string {
	t.Helper()
	c := p.dial(t, addr, port)
	defer c.Close()
	io.WriteString(c, "hello")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%s to %s: %v after %q", p.name, addr, err, got)
	}
	from, rest, _ := strings.Cut(string(got), "\n")
	if rest != "hello" {
		t.Fatalf("%s to %s: got back %q", p.name, addr, got)
	}
	return from
}

// wantReset dials and holds that the connection is reset without a byte. The
// reset may come before the dialler knows that it was connected.
func (p *pod) wantReset(t testing.TB, addr netip.Addr, port uint16) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.NS.Dial(ctx, netip.AddrPortFrom(addr, port), netns.DialOptions{})
	n := 0
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		n, err = c.Read(make([]byte, 1))
	}
	if n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s to %s port %d: read %d bytes and %v, want a reset", p.name, addr, port, n, err)
	}
}
