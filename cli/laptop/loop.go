package laptop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/kubelet"
	"github.com/culvert-mesh/culvert/cli/laptop/logfile"
	"github.com/culvert-mesh/culvert/cli/laptop/vips"
	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// loop is the cluster's heart: it alone touches the cluster's state. It ends
// when ctx does and every pod is gone.
func (m *Mesh) loop(ctx context.Context) error {
	m.sync(ctx)
	for {
		select {
		case <-ctx.Done():
			m.drainCalls()
			return nil
		case fn := <-m.calls:
			fn()
		case <-m.wake:
		}
		m.takeReports()
		m.sync(ctx)
	}
}

// drainCalls lets kubelets that end say so until all have.
func (m *Mesh) drainCalls() {
	gone := make(chan struct{})
	go func() {
		m.state.running.Wait()
		close(gone)
	}()
	for {
		select {
		case fn := <-m.calls:
			fn()
		case <-gone:
			return
		}
	}
}

// report is called by kubelets; the loop sees it soon.
func (m *Mesh) report(uid string, s cluster.Status) {
	m.mu.Lock()
	m.reports[uid] = s
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Mesh) takeReports() {
	m.mu.Lock()
	reports := m.reports
	m.reports = map[string]cluster.Status{}
	m.mu.Unlock()
	for uid, s := range reports {
		for _, p := range m.state.cluster.Pods() {
			if p.UID == uid {
				m.tellPod(p, p.Status(), s)
			}
		}
		m.state.cluster.Report(uid, s)
	}
}

func (m *Mesh) tellPod(p *cluster.Pod, was, is cluster.Status) {
	switch {
	case is.Ready && !was.Ready:
		m.event("pod "+p.Name.String(), fmt.Sprintf("ready on %s, %s", p.Node, p.Addrs.V4))
	case was.Ready && !is.Ready && !p.Stopping:
		m.bad("pod "+p.Name.String(), "no longer ready: "+is.Message)
	case is.Message != was.Message && is.Message != "" && !is.Ready:
		m.log.Info("pod", "name", p.Name.String(), "message", is.Message)
	}
}

// setObjects takes a new snapshot of the user's folders.
func (m *Mesh) setObjects(s *folder.Snapshot) {
	objs, problems := cluster.Decode(s, m.state.objs)
	for _, p := range problems {
		m.log.Warn("object is invalid, its last form is kept", "problem", p.String())
	}
	m.state.objs = objs
	m.state.cluster.Set(objs)
}

// sync carries out what the cluster decides, and publishes what it is.
func (m *Mesh) sync(ctx context.Context) {
	ch := m.state.cluster.Sync()
	m.publish()
	for _, p := range ch.Start {
		m.startPod(ctx, p)
	}
	for _, p := range ch.Stop {
		m.event("pod "+p.Name.String(), "stopping")
		if k := m.state.kubelets[p.UID]; k != nil {
			k.Stop()
		}
	}
	if problems := m.state.cluster.Problems(); !slices.Equal(problems, m.state.problems) {
		for _, p := range problems {
			if !slices.Contains(m.state.problems, p) {
				m.bad("cluster", p)
			}
		}
		m.state.problems = slices.Clone(problems)
	}
}

// publish writes the objects and makes services work.
func (m *Mesh) publish() {
	c := m.state.cluster
	if err := m.objects.Write(c.Objects()); err != nil {
		m.bad("cluster", "write objects: "+err.Error())
	}
	if err := m.patches.Write(c.Patches()); err != nil {
		m.bad("cluster", "write objects: "+err.Error())
	}
	m.dns.SetZone(c.Zone(mesh.DefaultClusterDomain))
	rules := c.VIPs()
	if text := rules.Text(); text != m.state.vips {
		m.state.vips = text
		for _, n := range m.fabric.Nodes {
			if err := vips.Apply(n.NS, rules); err != nil {
				m.bad("node "+n.Name, err.Error())
			}
		}
	}
}

// startPod starts the pod's kubelet.
func (m *Mesh) startPod(ctx context.Context, p *cluster.Pod) {
	node := m.fabric.Nodes[p.NodeNum-1]
	cfg, closeLog, err := m.kubeletConfig(node, p)
	if err != nil {
		m.bad("pod "+p.Name.String(), err.Error())
		m.report(p.UID, cluster.Status{Message: err.Error()})
		return
	}
	k := kubelet.New(cfg, p)
	m.state.kubelets[p.UID] = k
	m.state.running.Go(func() {
		if err := k.Run(ctx); err != nil {
			m.bad("pod "+p.Name.String(), err.Error())
		}
		closeLog()
		if err := os.RemoveAll(m.dir.Pod(p.UID)); err != nil {
			m.log.Warn("remove pod's files", "error", err)
		}
		m.calls <- func() {
			m.state.cluster.Gone(p.UID)
			delete(m.state.kubelets, p.UID)
		}
	})
}

func (m *Mesh) kubeletConfig(node *fabric.Node, p *cluster.Pod) (kubelet.Config, func(), error) {
	dir := m.dir.Pod(p.UID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return kubelet.Config{}, nil, err
	}
	if err := m.writePodToken(p); err != nil {
		return kubelet.Config{}, nil, err
	}
	log, err := logfile.Open(m.dir.PodLog(p.Name.Namespace, p.Name.Name), 0)
	if err != nil {
		return kubelet.Config{}, nil, err
	}
	cfg := kubelet.Config{
		Fabric: m.fabric, Node: node, Self: m.cfg.Self, Spawner: m.spawner, Dir: dir, Hide: Root,
		Env:    m.podEnv(),
		Domain: mesh.DefaultClusterDomain, Output: log, Images: m.images(p), Log: m.log,
		Report: func(s cluster.Status) { m.report(p.UID, s) },
	}
	if m.inMesh(p.Object) {
		cfg.Join = func(ctx context.Context) error { return m.cmdAdd(ctx, node, p) }
	}
	return cfg, func() { log.Close() }, nil
}

// podEnv is what every process of a pod finds in its environment.
func (m *Mesh) podEnv() []string {
	return []string{"PATH=" + m.dir.Bin() + ":" + m.cfg.PATH, "HOME=/", "CULVERT_MESH=" + m.cfg.Name}
}

// images are the built-in programs, as this pod runs them.
func (m *Mesh) images(p *cluster.Pod) map[string]kubelet.Image {
	root := m.dir.RootCert()
	return map[string]kubelet.Image{
		"culvert/echo": {Command: []string{m.cfg.Self, "component", "echo"}},
		"culvert/waypoint": {
			Command: []string{m.cfg.Self, "component", "waypoint"},
			Env: []string{"XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root, "CA_ADDRESS=" + cluster.XDSAddress,
				"AUTH_TOKEN=" + kubelet.TokenPath(m.dir.Pod(p.UID)), "LOG_FORMAT=json", "CLUSTER_ID=" + string(mesh.DefaultCluster)},
		},
	}
}

// inMesh decides as the CNI plugin does, whether the agent is to be asked.
func (m *Mesh) inMesh(o *corev1.Pod) bool {
	ns := enroll.Namespace{Name: o.Namespace}
	if m.state.objs != nil && m.state.objs.Namespaces[o.Namespace] != nil {
		ns.Labels = m.state.objs.Namespaces[o.Namespace].Labels
	}
	return enroll.Decide(enroll.DefaultConfig(), enroll.Pod{
		Name: o.Name, Namespace: o.Namespace, ServiceAccount: o.Spec.ServiceAccountName,
		HostNetwork: o.Spec.HostNetwork, Labels: o.Labels, Annotations: o.Annotations,
	}, ns).InMesh
}

// cniRequest is what the CNI plugin sends to the node agent (POST /cmdadd).
type cniRequest struct {
	Netns        string
	PodName      string
	PodNamespace string
	IPs          []cniIP
}

type cniIP struct {
	Interface *int
	Address   net.IPNet
	Gateway   net.IP
}

// joinTimeout bounds one request, as in the plugin.
const joinTimeout = 5 * time.Second

// cmdAdd tells the node's agent of a new pod.
func (m *Mesh) cmdAdd(ctx context.Context, node *fabric.Node, p *cluster.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	req := cniRequest{Netns: m.fabric.PodPath(p.UID), PodName: p.Name.Name, PodNamespace: p.Name.Namespace}
	gateway := fabric.PodGateway(node.Number)
	for i, a := range p.Addrs.Slice() {
		req.IPs = append(req.IPs, cniIP{Address: ipNet(a), Gateway: gateway.Slice()[i].AsSlice()})
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return postUnix(ctx, m.dir.AgentSocket(node.Name), "/cmdadd", body)
}

func ipNet(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// postUnix posts JSON to a program that listens on a unix socket.
func postUnix(ctx context.Context, socket, path string, body []byte) error {
	client := &http.Client{Transport: unixTransport(socket)}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://unix"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("node agent: %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil
}

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
}
