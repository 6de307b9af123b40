package laptop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/logfile"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// drainTime is how long a component may take to end, and overlapTime how long a
// ztunnel that has a successor: connections through it may be long. ztunnel is
// told the same.
const (
	drainTime   = 30 * time.Second
	overlapTime = time.Hour
)

// ztunnelRestart is how soon a ztunnel that died is started again: connections
// wait for it in the queues of the sockets that the agent holds.
const ztunnelRestart = 5 * time.Millisecond

func ztunnelName(node string) string { return "ztunnel-" + node }
func agentName(node string) string   { return "agent-" + node }

const controlPlaneName = "controlplane"

// buildUnits lays out the processes of the mesh's components.
func (m *Mesh) buildUnits() error {
	specs := []supervise.Spec{m.controlPlaneSpec()}
	for _, n := range m.fabric.Nodes {
		specs = append(specs, m.agentSpec(n), m.ztunnelSpec(n))
	}
	for _, s := range specs {
		w, err := logfile.Open(m.dir.Log(s.Name), 0)
		if err != nil {
			return err
		}
		s.Log, s.Spawner = w, m.spawner
		s.Drain = max(s.Drain, drainTime) + 5*time.Second
		var last supervise.Status
		m.units = append(m.units, supervise.New(s, func(now supervise.Status) {
			m.tellUnit(last, now)
			last = now
		}))
	}
	return nil
}

func (m *Mesh) tellUnit(was, is supervise.Status) {
	switch {
	case is.State == supervise.Waiting && was.State != supervise.Waiting:
		m.bad(is.Name, fmt.Sprintf("ended (%s), starting again", is.LastExit))
	case is.Replaced > was.Replaced:
		m.event(is.Name, fmt.Sprintf("replaced by process %d", is.PID))
	case is.State == supervise.Ready && was.State == supervise.Starting:
		m.event(is.Name, fmt.Sprintf("ready, process %d", is.PID))
	}
}

// componentSpec runs one of our own programs, which this binary holds.
func (m *Mesh) componentSpec(name, program string, args ...string) supervise.Spec {
	return supervise.Spec{Name: name, Path: m.cfg.Self, Args: append([]string{"component", program}, args...)}
}

func (m *Mesh) controlPlaneSpec() supervise.Spec {
	args := []string{
		"--objects", m.dir.Objects(), "--patches", m.dir.Patches(), "--state", m.dir.CA(), "--token-keys", m.issuer.JWKS(),
		"--ip", fabric.ControlPlane4.String(), "--ip", fabric.ControlPlane6.String(),
		"--log-format", "json",
	}
	for _, f := range m.cfg.Folders {
		args = append(args, "--folder", f)
	}
	s := m.componentSpec(controlPlaneName, "controlplane", args...)
	s.NS = m.fabric.ControlPlane
	s.Ready = func(ctx context.Context, pid int) error { return readyAt(ctx, m.fabric.ControlPlane, pid) }
	return s
}

func (m *Mesh) agentSpec(n *fabric.Node) supervise.Spec {
	args := []string{
		"--node", n.Name, "--socket", m.dir.AgentSocket(n.Name), "--zds", m.dir.ZDSSocket(n.Name),
		"--objects", m.dir.Objects(), "--patches", m.dir.ClusterPatches(), "--patches-out", m.dir.NodePatches(n.Name),
		"--netns-dir", m.dir.PodNamespaces(), "--log-format", "json",
	}
	for _, f := range m.cfg.Folders {
		args = append(args, "--folder", f)
	}
	s := m.componentSpec(agentName(n.Name), "agent", args...)
	s.NS = n.NS
	s.Ready = func(ctx context.Context, _ int) error { return accepts(ctx, m.dir.AgentSocket(n.Name)) }
	return s
}

// ztunnelSpec starts a ztunnel, ours or another, by the environment that
// upstream's takes: nothing here is private to us.
func (m *Mesh) ztunnelSpec(n *fabric.Node) supervise.Spec {
	s := m.componentSpec(ztunnelName(n.Name), "ztunnel")
	if other := m.cfg.Ztunnels[n.Name]; other != "" {
		s = supervise.Spec{Name: ztunnelName(n.Name), Path: other, Args: []string{"proxy", "ztunnel"}}
	}
	control := "https://" + netip.AddrPortFrom(fabric.ControlPlane4, mesh.PortXDS).String()
	s.Env = []string{
		"XDS_ADDRESS=" + control, "CA_ADDRESS=" + control,
		"XDS_ROOT_CA=" + m.dir.RootCert(), "CA_ROOT_CA=" + m.dir.RootCert(),
		"AUTH_TOKEN=" + m.dir.NodeToken(n.Name), "INPOD_UDS=" + m.dir.ZDSSocket(n.Name),
		"NODE_NAME=" + n.Name, "POD_NAME=" + ztunnelName(n.Name), "POD_NAMESPACE=" + systemNamespace, "SERVICE_ACCOUNT=" + ztunnelAccount,
		"INSTANCE_IP=" + fabric.NodeAddrs(n.Number).V4.String(), "CLUSTER_ID=" + string(mesh.DefaultCluster),
		"TRUST_DOMAIN=" + mesh.DefaultTrustDomain, "LOG_FORMAT=json", "RUST_LOG=info",
		fmt.Sprintf("TERMINATION_GRACE_PERIOD_SECONDS=%d", int(overlapTime.Seconds())),
	}
	s.NS = n.NS
	s.Drain, s.Restart = overlapTime, ztunnelRestart
	s.Ready = func(ctx context.Context, pid int) error {
		if _, err := os.Stat(m.dir.RootCert()); err != nil {
			return errors.New("the control plane has not written its root certificate yet")
		}
		return readyAt(ctx, n.NS, pid)
	}
	return s
}

// accepts reports whether something listens on a unix socket.
func accepts(ctx context.Context, socket string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// sharedAsks is how often a port that two processes listen on is asked: the
// kernel gives each connection to one of them by its port number, so that the
// new one is missed every time once in 2^24.
const sharedAsks = 24

// readyAt asks the readiness port inside a namespace. While a predecessor still
// listens there too, only an answer that cannot all be the predecessor's counts.
func readyAt(ctx context.Context, ns *netns.NS, pid int) error {
	mine, all, err := listeners(pid, mesh.PortReady)
	if err != nil {
		return err
	}
	if mine == 0 {
		return errors.New("the readiness port is not open yet")
	}
	asks := 1
	if all > mine {
		asks = sharedAsks
	}
	for range asks {
		if err := askReady(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

func askReady(ctx context.Context, ns *netns.NS) error {
	body, status, err := getInside(ctx, ns, mesh.PortReady, "/healthz/ready")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	return nil
}

// getInside is askInside for a GET.
func getInside(ctx context.Context, ns *netns.NS, port uint16, path string) ([]byte, int, error) {
	return askInside(ctx, ns, port, http.MethodGet, path, nil)
}

// listeners counts the listening sockets on a port in the process's network
// namespace: those of the process, and all.
func listeners(pid int, port uint16) (mine, all int, err error) {
	own, err := socketsOf(pid)
	if err != nil {
		return 0, 0, err
	}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // a kernel without IPv6
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if inode, ok := listening(s.Text(), port); ok {
				all++
				if own[inode] {
					mine++
				}
			}
		}
		f.Close()
	}
	return mine, all, nil
}

// listening parses a line of /proc/net/tcp: state 0A is LISTEN (proc_net_tcp).
func listening(line string, port uint16) (inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != "0A" {
		return "", false
	}
	_, hex, _ := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	return f[9], err == nil && uint16(n) == port
}

// socketsOf returns the inodes of a process's sockets.
func socketsOf(pid int) (map[string]bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the process is gone: %w", err)
	}
	own := map[string]bool{}
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return own, nil
}
