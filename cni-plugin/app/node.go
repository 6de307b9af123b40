package app

import (
	"cmp"
	"context"
	"crypto/sha256"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/proof"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// ConditionType is the type of the condition that the agent writes on its node's
// object with --prove: "True" when a pod of the mesh can live on the node. Its reason
// is the first check that failed, one of package proof's, or "Proven"; its message
// is that of proof.Report.Condition, with what to do.
const ConditionType = "culvert-mesh.github.io/Ready"

// Waits between proofs that found something wrong, and how often it is looked
// whether there is a reason for one.
const (
	minProof     = 2 * time.Second
	maxProof     = 10 * time.Second // what is wrong during an install is right seconds later
	lookProof    = 500 * time.Millisecond
	ztunnelGrace = 5 * time.Second
)

// watchNode proves the node when the agent knows its pods and the plugin is
// installed, again while something is wrong, and whenever the CNI configuration has
// changed. A node that is ready loses the taints that kept pods off it.
func (p *process) watchNode(ctx context.Context, parts Parts, changed <-chan struct{}) error {
	select {
	case <-p.agent.loaded:
	case <-ctx.Done():
		return nil
	}
	backoff := run.NewBackoff(minProof, maxProof)
	tick := time.NewTicker(lookProof)
	defer tick.Stop()
	var proven [sha256.Size]byte // the configuration that was proven, and found good
	var again time.Time
	told := ""
	start, ztunnels := time.Now(), 0
	for {
		if n := p.agent.zds.Connected(); n != ztunnels {
			ztunnels, again = n, time.Time{}
		}
		if ztunnels == 0 && time.Since(start) < ztunnelGrace { // it looks for us again in a moment
			again = start.Add(ztunnelGrace)
		}
		conf := fingerprint(p.cfg.CNI.Folder)
		if p.installer.Err() == nil && conf != proven && !time.Now().Before(again) {
			var ok bool
			if ok, told = p.proveNode(ctx, parts, told); ok {
				proven = conf
				backoff.Reset()
			} else {
				proven, again = [sha256.Size]byte{}, time.Now().Add(backoff.Next())
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-p.uninstall:
			return nil
		case <-tick.C:
		}
	}
}

// proveNode tries the node, writes the result on its object, and returns whether the
// node is ready and nothing is left to be written. told is what was said last.
func (p *process) proveNode(ctx context.Context, parts Parts, told string) (ok bool, now string) {
	if !p.cfg.Prove {
		return p.untaint(ctx), ""
	}
	seen, err := proof.Prove(ctx, p.proofConfig())
	if ctx.Err() != nil {
		return false, told
	}
	if err != nil {
		p.log.Error("the node could not be tried", "error", err)
		return false, told
	}
	report := proof.Judge(seen)
	status, reason, message := report.Condition()
	now = status + reason + message
	parts.Metrics.proven.Set(map[bool]float64{true: 1}[len(report.Failed) == 0])
	if now != told {
		if status == "True" {
			p.log.Info("the node is proven", "message", message, "configuration", seen.Conf)
			parts.Events.NodeEvent(Normal, "MeshNodeReady", message)
		} else {
			p.log.Warn("the node is not ready for pods of the mesh", "reason", reason, "message", message)
			parts.Events.NodeEvent(Warning, "MeshNodeNotReady", message)
		}
	}
	if err := p.kube.node.SetCondition(ctx, ConditionType, status, reason, message); err != nil {
		p.log.Warn("the node's condition is not written, will try again", "error", err)
		return false, now
	}
	return len(report.Failed) == 0 && p.untaint(ctx), now
}

// untaint takes the taints off the node, and reports whether they are off.
func (p *process) untaint(ctx context.Context) bool {
	removed, err := p.kube.node.RemoveTaints(ctx, p.cfg.Taints)
	if err != nil {
		p.log.Warn("the node's taints are not removed, will try again", "error", err)
		return false
	}
	if len(removed) > 0 {
		p.log.Info("the node is ready: taints removed", "taints", removed)
	}
	return true
}

// fingerprint tells configurations apart: the names and contents of what a runtime
// reads.
func fingerprint(folder string) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, pattern := range []string{"*.conf", "*.conflist", "*.json"} {
		files, _ := filepath.Glob(filepath.Join(folder, pattern)) // the pattern is well-formed
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err == nil {
				h.Write([]byte(file + "\x00"))
				h.Write(content)
			}
		}
	}
	h.Sum(sum[:0])
	return sum
}

// proofDir is where a proof remembers what it has to take down.
func (c Config) proofDir() string { return filepath.Join(filepath.Dir(c.Socket), "proof") }

func (p *process) proofConfig() proof.Config {
	c := proof.Config{
		ConfDir: p.cfg.CNI.Folder, BinDir: p.cfg.CNI.BinDir, StateDir: p.cfg.proofDir(),
		Proc: p.cfg.Proc, Namespace: cmp.Or(p.cfg.Namespace, "culvert-system"), Source: probeSource,
		Announced: func() bool { return p.agent.provenPod.Swap(false) }, Ztunnels: p.agent.zds.Connected,
		DNS: nameserver("/etc/resolv.conf"), Log: p.log,
	}
	if p.cfg.ProbeSNAT {
		c.Rewrite = p.agent.rewriteFor
	}
	for _, s := range []proof.Server{{Check: proof.ControlPlane, Address: p.cfg.Proof.XDS, Roots: p.roots(p.cfg.Proof.XDSRoot)},
		{Check: proof.CA, Address: p.cfg.Proof.CA, Roots: p.roots(p.cfg.Proof.CARoot)}} {
		if s.Address = hostPort(s.Address); s.Address != "" {
			c.Servers = append(c.Servers, s)
		}
	}
	return c
}

// roots says where certificates are read: of the API server, or in a file.
func (p *process) roots(file string) func(context.Context) ([]byte, error) {
	if p.kube.roots != nil {
		return p.kube.roots.Read
	}
	return func(context.Context) ([]byte, error) { return os.ReadFile(file) }
}

// hostPort takes "host:port" out of an address that may be a URL.
func hostPort(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return ""
	}
	return address
}

// nameserver is the first one of a resolver's configuration; invalid if none.
func nameserver(path string) netip.AddrPort {
	content, err := os.ReadFile(path)
	if err != nil {
		return netip.AddrPort{}
	}
	for line := range strings.Lines(string(content)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil && !ip.IsLoopback() { // one on the node's loopback answers no pod
			return netip.AddrPortFrom(ip, 53)
		}
	}
	return netip.AddrPort{}
}
