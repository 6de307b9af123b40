//go:build kube

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mesh is the mesh's programs, run as processes in the places of the cluster: what
// the charts would run as pods.
type mesh struct {
	l       layout
	api     *client
	control *program
	agents  map[string]*program
	proxies map[string]*program
}

// the is the mesh of this run.
var the mesh

const (
	meshNamespace = "culvert-system" // the mesh's own namespace
	limit         = 4 * time.Minute  // of everything that is waited for: a machine may be very busy
	redirects     = "ambient.istio.io/redirection"
	labelMode     = "istio.io/dataplane-mode"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "launch" || os.Args[1] == "init") {
		main() // `up` calls the program that it is in
		return
	}
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube tests:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// testMain brings up what is not up, and takes down what it has brought up.
func testMain(m *testing.M) (code int, err error) {
	l, err := theLayout()
	if err != nil {
		return 1, err
	}
	ctx := context.Background()
	if !isUp(l) {
		defer func() { err = errors.Join(err, down(l)) }()
	}
	the = mesh{l: l, agents: map[string]*program{}, proxies: map[string]*program{}}
	defer func() {
		if code != 0 || err != nil {
			the.keep()
		}
	}()
	if err := up(ctx, l); err != nil {
		return 1, err
	}
	if the.api, err = newClient(l); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, the.stop()) }()
	start := time.Now()
	if err := the.start(ctx); err != nil {
		return 1, fmt.Errorf("start the mesh: %w", err)
	}
	fmt.Printf("kube: mesh up in %.1f s\n", time.Since(start).Seconds())
	return m.Run(), nil
}

// keep tells how the cluster is, and leaves all logs where a person finds them.
func (m *mesh) keep() {
	fmt.Println(m.story())
	kept := filepath.Join(os.TempDir(), "culvert-kube-logs")
	err := keep(m.l, kept)
	if _, none := os.Stat(m.dir()); none == nil {
		err = errors.Join(err, os.CopyFS(filepath.Join(kept, "mesh"), os.DirFS(m.dir())))
	}
	fmt.Println("kube: logs are kept in", kept, err)
}

// story is what is needed to see why something did not happen: how the cluster is, and
// what the mesh's programs said last.
func (m *mesh) story() string {
	var out strings.Builder
	report(m.l, &out)
	files, _ := filepath.Glob(m.dir("*.log")) // the pattern is well-formed
	for _, file := range files {
		content, _ := os.ReadFile(file)
		lines := strings.SplitAfter(string(content), "\n")
		fmt.Fprintf(&out, "--- the last of %s\n%s", filepath.Base(file), strings.Join(lines[max(0, len(lines)-reportLog):], ""))
	}
	return out.String()
}

func (m *mesh) dir(elements ...string) string {
	return m.l.cluster(append([]string{"mesh"}, elements...)...)
}

// start starts the control plane before there is any definition of custom
// resources, which TestLateDefinitions wants, and then the nodes' programs.
func (m *mesh) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*limit)
	defer cancel()
	os.RemoveAll(m.dir())
	if err := os.MkdirAll(m.dir(), 0o755); err != nil {
		return err
	}
	if err := m.define(ctx, false); err != nil {
		return err
	}
	if err := until(ctx, "the mesh's namespace is made", func() error { return m.api.apply(ctx, meshObjects()) }); err != nil {
		return err
	}
	m.control = m.newControl()
	if err := m.control.start(); err != nil {
		return err
	}
	if err := until(ctx, "the control plane is ready", func() error { return fetch("http://" + controlIP + ":15021/healthz/ready") }); err != nil {
		return err
	}
	if err := m.define(ctx, true); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := m.startNode(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func fetch(url string) error {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// meshObjects are the namespace and the pods whose tokens the ztunnels show: the
// certificate authority goes by the node that a token's pod is on.
func meshObjects() string {
	objects := []any{
		fields{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": meshNamespace}},
		fields{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": fields{"name": "ztunnel", "namespace": meshNamespace}},
		fields{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": fields{"name": "other", "namespace": meshNamespace}},
	}
	for _, n := range nodes {
		p := newPod(meshNamespace, "ztunnel-"+n, n, "pause")
		p.spec()["hostNetwork"], p.spec()["serviceAccountName"] = true, "ztunnel"
		objects = append(objects, p)
	}
	return documents(objects...)
}

// define makes the definitions of custom resources, or takes them away.
func (m *mesh) define(ctx context.Context, there bool) error {
	files, err := definitionFiles(ctx)
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if there {
			if err := m.api.apply(ctx, string(content)); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			continue
		}
		group, plural, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".yaml"), "_")
		path := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + plural + "." + group
		if err := m.api.remove(ctx, path); err != nil {
			return err
		}
		if err := until(ctx, plural+" are gone", func() error { return m.api.gone(ctx, path) }); err != nil {
			return err
		}
	}
	return nil
}

// definitionFiles are Gateway API's, from its module, and those of the chart.
func definitionFiles(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		return nil, err
	}
	var files []string
	gateway := filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard")
	for _, pattern := range []string{filepath.Join(gateway, "gateway.networking.k8s.io_*s.yaml"), "../../charts/base/files/istio/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("no definitions like %s: %v", pattern, err)
		}
		for _, file := range found {
			if !strings.Contains(file, "_vap_") { // a policy about definitions
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// program is one of ours in a place. Its log goes on when it is started again.
type program struct {
	l        layout
	place    string
	log      string
	args     []string
	env      []string
	cmd      *exec.Cmd
	finished chan struct{}
}

func binary(name string) string { return filepath.Join(os.Getenv("CULVERT_BIN"), name) }

func (m *mesh) newControl() *program {
	return &program{l: m.l, place: control, log: m.dir("controlplane.log"), args: []string{
		binary("controlplane"), "--kube", "--kubeconfig", m.l.kubeconfig("admin"), "--state", m.dir("state"),
		"--ip", controlIP, "--xds-listen", controlIP + ":15012", "--admin-listen", controlIP + ":15000",
		"--node-account", meshNamespace + "/ztunnel"}}
}

func (m *mesh) newAgent(node string, more ...string) *program {
	root := m.dir("state", "root-cert.pem")
	return &program{l: m.l, place: node, log: m.dir("agent-" + node + ".log"), args: append([]string{
		binary("culvert-agent"), "--kube", "--kubeconfig", m.l.kubeconfig("admin"), "--node", node, "--admin-listen", ":15014", "--prove",
		"--cni-conf-dir", "/etc/cni/net.d", "--cni-bin-dir", "/opt/cni/bin", "--cni-plugin", binary("culvert-cni"),
		"--eligibility", "/var/run/culvert-cni/eligibility.json"}, more...),
		env: []string{"XDS_ADDRESS=https://" + controlIP + ":15012", "CA_ADDRESS=https://" + controlIP + ":15012", "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root}}
}

func (m *mesh) newProxy(node, token string) *program {
	root := m.dir("state", "root-cert.pem")
	return &program{l: m.l, place: node, log: m.dir("ztunnel-" + node + ".log"), args: []string{binary("ztunnel")}, env: []string{
		"XDS_ADDRESS=https://" + controlIP + ":15012", "CA_ADDRESS=https://" + controlIP + ":15012",
		"XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root, "AUTH_TOKEN=" + token, "INSTANCE_IP=" + placeOf(node).ip,
		"NODE_NAME=" + node, "POD_NAME=ztunnel-" + node, "POD_NAMESPACE=" + meshNamespace, "SERVICE_ACCOUNT=ztunnel"}}
}

func (m *mesh) startNode(ctx context.Context, node string) error {
	if err := until(ctx, "ztunnel's pod runs", func() error { return m.api.podReady(ctx, meshNamespace, "ztunnel-"+node) }); err != nil {
		return err
	}
	bearer, err := m.api.token(ctx, meshNamespace, "ztunnel", "ztunnel-"+node, "istio-ca")
	if err != nil {
		return err
	}
	file := m.dir("token-" + node)
	if err := os.WriteFile(file, []byte(bearer), 0o600); err != nil {
		return err
	}
	m.agents[node], m.proxies[node] = m.newAgent(node), m.newProxy(node, file)
	if err := errors.Join(m.agents[node].start(), m.proxies[node].start()); err != nil {
		return err
	}
	return until(ctx, "the agent of "+node+" is ready", func() error { return m.ready(node) })
}

// ready is nil when a node's programs are: the agent knows its pods, a ztunnel is
// connected to it, and ztunnel knows the mesh.
func (m *mesh) ready(node string) error {
	s, err := m.status(node)
	if err == nil && (!s.Ready || s.Ztunnels == 0) {
		err = fmt.Errorf("agent of %s: ready %v, ztunnels %d", node, s.Ready, s.Ztunnels)
	}
	return errors.Join(err, fetch("http://"+placeOf(node).ip+":15021/healthz/ready"))
}

// agentStatus is what the agent says of itself.
type agentStatus struct {
	Ready    bool
	Ztunnels int
	Pods     []struct {
		Namespace, Name, State, Error string
		InMesh                        bool
	}
}

func (m *mesh) status(node string) (s agentStatus, err error) {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + placeOf(node).ip + ":15014/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// stop takes the mesh out of the cluster.
func (m *mesh) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, n := range nodes {
		if m.agents[n] == nil {
			continue
		}
		m.agents[n].kill(syscall.SIGTERM)
		m.proxies[n].kill(syscall.SIGKILL)
	}
	if m.control != nil {
		m.control.kill(syscall.SIGTERM)
	}
	return errors.Join(m.api.remove(ctx, "/api/v1/namespaces/"+meshNamespace), m.define(ctx, false))
}

func (p *program) start() error {
	cmd, err := enter(p.l, p.place, p.args...)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Env = append(cmd.Env, p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.finished = cmd, make(chan struct{})
	go func(finished chan struct{}) {
		defer close(finished)
		cmd.Wait()
	}(p.finished)
	return nil
}

// pid is the program's process, which is the child of nsenter.
func (p *program) pid() (int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(children)))
}

// kill sends a signal and waits for the end.
func (p *program) kill(sig syscall.Signal) {
	if pid, err := p.pid(); err == nil {
		syscall.Kill(pid, sig)
	}
	select {
	case <-p.finished:
	case <-time.After(limit):
		p.cmd.Process.Kill() // and with it the program
		<-p.finished
	}
}

// logged returns the lines of the log that contain all of words.
func (p *program) logged(words ...string) []string {
	content, _ := os.ReadFile(p.log)
	var lines []string
next:
	for line := range strings.Lines(string(content)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}
