// Package proof tries a node before pods of the mesh are put on it: it makes a pod of
// its own through the node's real CNI configuration, redirects it as any other, and
// calls it from where the kubelet and other nodes would.
//
//	CNI chain (libcni) ──▶ namespace with the node's network
//	                             │ rules (redirect), stand-ins for ztunnel's listeners
//	node ── probe port ─────────▶ the program itself        Probe
//	node ── any other port ─────▶ :15006                    Capture
//	node ── 15008 ──────────────▶ :15008                    Tunnel
//	pod  ── anywhere ───────────▶ :15001                    Outbound
//	pod  ── DNS, xDS, CA ───────▶ answers                   DNS, ControlPlane, CA
//	   └──▶ Seen ── Judge (pure) ──▶ Report ──▶ the node's condition
//
// The pod is taken down again (DEL) whatever happens; one that a crash left is taken
// down before the next. Judge may be called from anywhere, Prove once at a time.
package proof

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Check is one thing that is tried. It is also the reason of the node's condition.
type Check string

// All checks, in the order in which they are tried and told.
const (
	Kernel       Check = "Kernel"       // nftables and routing as the rules need them
	Chain        Check = "Chain"        // the node's CNI configuration makes a pod's network
	Plugin       Check = "Plugin"       // and calls our plugin at its end
	Addresses    Check = "Addresses"    // the pod has an address
	Probe        Check = "Probe"        // the kubelet's way to a probe's port is not captured
	Capture      Check = "Capture"      // everything else that arrives is
	Tunnel       Check = "Tunnel"       // the tunnel's port can be reached
	Outbound     Check = "Outbound"     // what the pod opens is captured
	DNS          Check = "DNS"          // the cluster's DNS answers the pod
	ControlPlane Check = "ControlPlane" // the control plane can be reached and is the trusted one
	CA           Check = "CA"           // so can the certificate authority
	Ztunnel      Check = "Ztunnel"      // a ztunnel of this node is connected to the agent
)

// Seen is what was observed. Errors are kept as text: "" is none.
type Seen struct {
	Kernel    string       `json:"kernel,omitempty"`
	Conf      string       `json:"conf,omitempty"` // file of the CNI configuration
	Chain     string       `json:"chain,omitempty"`
	Announced bool         `json:"announced,omitempty"` // our plugin told the agent of the pod
	IPs       []netip.Addr `json:"ips,omitempty"`
	Inbound   []Inbound    `json:"inbound,omitempty"` // one for each of IPs
	Outbound  Answer       `json:"outbound"`
	DNS       *Reached     `json:"dns,omitempty"` // nil: no server is known
	Endpoints []Reached    `json:"endpoints,omitempty"`
	Ztunnels  int          `json:"ztunnels"`
}

// Inbound is what answered at one of the pod's addresses.
type Inbound struct {
	Source  netip.Addr `json:"source"` // of the node, as the rules for probes expect it
	Probe   Answer     `json:"probe"`
	Capture Answer     `json:"capture"`
	Tunnel  Answer     `json:"tunnel"`
}

// Answer says who answered a connection.
type Answer struct {
	By   string     `json:"by,omitempty"`  // "program", or the port of a ztunnel's listener
	From netip.Addr `json:"from,omitzero"` // from where it saw the connection come
	Err  string     `json:"err,omitempty"` // nobody did
}

// Reached is a server that the pod called.
type Reached struct {
	Check   Check  `json:"check"`
	Address string `json:"address"`
	Err     string `json:"err,omitempty"`
}

// Program is who answers in Answer.By when the connection was not captured.
const Program = "program"

// Finding is a check that failed.
type Finding struct {
	Check Check
	Found string // what was seen
	Fix   string // what to do about it
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s; fix: %s", f.Check, f.Found, f.Fix) }

// Report is the verdict about a node.
type Report struct {
	Failed []Finding
	Notes  []string // what is as it should be and worth to know
}

// Proven is the reason of the node's condition when nothing failed.
const Proven = "Proven"

// Condition is the report as a node's condition. The reason is the first failed
// check, the message has all of them: "CHECK: FOUND; fix: FIX", joined by " | ".
func (r Report) Condition() (status, reason, message string) {
	if len(r.Failed) == 0 {
		return "True", Proven, strings.Join(append([]string{"a pod of the mesh was made on this node, called and taken down"}, r.Notes...), "; ")
	}
	var lines []string
	for _, f := range r.Failed {
		lines = append(lines, f.String())
	}
	return "False", string(r.Failed[0].Check), strings.Join(lines, " | ")
}

// Judge says what is wrong with a node. What could not be tried because of an
// earlier failure is not told as one of its own.
func Judge(s Seen) Report {
	var r Report
	r.kernel(s)
	if r.chain(s) {
		for i, in := range s.Inbound {
			r.inbound(s.IPs[i], in)
		}
		r.outbound(s)
		r.families(s)
	}
	if s.Ztunnels == 0 {
		r.fail(Ztunnel, "no ztunnel of this node is connected to the agent",
			"look at the pod of the ztunnel DaemonSet on this node, and whether it mounts the folder of the agent's socket (/var/run/ztunnel)")
	}
	return r
}

func (r *Report) fail(c Check, found, fix string) {
	r.Failed = append(r.Failed, Finding{c, found, fix})
}

func (r *Report) kernel(s Seen) {
	if s.Kernel != "" {
		r.fail(Kernel, s.Kernel, "load the module or use a kernel that has it")
	}
}

// chain judges the pod's making, and reports whether there was a pod.
func (r *Report) chain(s Seen) bool {
	switch {
	case s.Conf == "":
		r.fail(Chain, s.Chain, "install the cluster's network (CNI) first, and give the agent the folder that the runtime reads (--cni-conf-dir)")
	case s.Chain != "":
		r.fail(Chain, fmt.Sprintf("%s makes no network: %s", s.Conf, s.Chain),
			"repair the cluster's network: pods cannot start on this node with or without the mesh, unless this network wants a pod that the API server knows: then prove the node without (--prove=false)")
	case !s.Announced:
		r.fail(Plugin, s.Conf+" does not call culvert-cni, or it does not reach this agent",
			"let no other tool take the plugin out of the configuration again, and check that the agent's socket is at the same path for node and agent")
	case len(s.IPs) == 0:
		r.fail(Addresses, s.Conf+" gave the pod no address", "check the address range (IPAM) of the cluster's network on this node")
	default:
		return true
	}
	return false
}

func (r *Report) inbound(ip netip.Addr, in Inbound) {
	switch {
	case in.Probe.Err != "":
		r.fail(Probe, fmt.Sprintf("the node cannot reach its pod %s: %s", ip, in.Probe.Err), "probes of the kubelet fail too: check the node's firewall and the routes to its own pods")
	case in.Probe.By != Program:
		r.fail(Probe, fmt.Sprintf("a probe of pod %s was captured: it came from %s, and the node's route says %s", ip, in.Probe.From, in.Source),
			"the node rewrites the source of what it sends to pods: switch that masquerading off, or install with cni.probeSNAT=true")
	}
	wanted := func(c Check, a Answer, by uint16, what, fix string) {
		switch want := fmt.Sprint(by); {
		case a.Err != "" && in.Probe.Err == "":
			r.fail(c, fmt.Sprintf("%s of pod %s cannot be reached: %s", what, ip, a.Err), fix)
		case a.Err == "" && a.By != want:
			r.fail(c, fmt.Sprintf("%s of pod %s was answered by %s and not by ztunnel's port %s", what, ip, a.By, want), fix)
		}
	}
	wanted(Capture, in.Capture, mesh.PortPlaintext, "a port", "something in the pod's namespace accepts before the mesh's rules do: look for rules of another mesh or of the network there")
	wanted(Tunnel, in.Tunnel, mesh.PortHBONE, "port 15008", "let TCP port 15008 through to pods: node firewall, security group, host policy, NetworkPolicy")
}

func (r *Report) outbound(s Seen) {
	if want := fmt.Sprint(mesh.PortOutbound); s.Outbound.Err != "" || s.Outbound.By != want {
		found := s.Outbound.Err
		if found == "" {
			found = "answered by " + s.Outbound.By
		}
		r.fail(Outbound, "a connection of the pod did not come to ztunnel: "+found, "look for rules of another mesh or of the network in the pod's namespace, and for its default route")
	}
	if d := s.DNS; d != nil && d.Err != "" {
		r.fail(DNS, fmt.Sprintf("the DNS server %s does not answer a pod: %s", d.Address, d.Err), "check the cluster's DNS pods, kube-proxy on this node, and that UDP port 53 is open to them")
	}
	for _, e := range s.Endpoints {
		if e.Err == "" {
			continue
		}
		r.fail(e.Check, fmt.Sprintf("%s cannot be used from a pod: %s", e.Address, e.Err),
			"check that the control plane's pods are ready, that its Service has endpoints, and that nothing between the nodes blocks its port")
	}
}

func (r *Report) families(s Seen) {
	four, six := false, false
	for _, ip := range s.IPs {
		four, six = four || ip.Is4(), six || ip.Is6()
	}
	switch {
	case four && six:
		r.Notes = append(r.Notes, "pods have IPv4 and IPv6 addresses, and both were tried")
	case six:
		r.Notes = append(r.Notes, "pods have IPv6 addresses only")
	default:
		r.Notes = append(r.Notes, "pods have no IPv6 addresses")
	}
	if s.DNS == nil {
		r.Notes = append(r.Notes, "DNS was not tried: the agent has no nameserver")
	}
	if len(s.Endpoints) == 0 {
		r.Notes = append(r.Notes, "the control plane was not tried: the agent was not told where it is")
	}
}
