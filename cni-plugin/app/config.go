package app

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/install"
	"github.com/culvert-mesh/culvert/cni-plugin/plugin"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/logging"
)

// Config is everything that an agent is told.
type Config struct {
	Node        string         // the name of its node; required
	Socket      string         // unix socket of /cmdadd, /cmddel, /status
	ZDS         string         // unix socket to which ztunnel connects
	Handover    string         // unix socket at which ztunnels leave sockets and state; "" = none
	Folders     []string       // YAML of users
	Objects     []string       // YAML of controllers
	Patches     []string       // patches of others
	PatchesOut  string         // where the agent writes its annotations
	NetnsDir    string         // namespaces of pods, bound at files named by UID
	Kube        bool           // pods come from an API server instead of folders
	Kubeconfig  string         // how to reach it; "" = as a pod does
	Proc        string         // the node's procfs, where namespaces are found unless in NetnsDir
	Mounts      string         // where the runtime binds pods' namespaces; only Uninstall looks there
	CNI         install.Config // where the CNI plugin is kept installed; no Folder = nowhere
	Uninstall   bool           // take the plugin off the node and end
	Eligibility string         // file that says who is in the mesh; "" = none
	AdminListen netip.AddrPort // health, metrics and status over TCP; invalid = none

	Namespace string   // where the mesh itself runs
	DaemonSet string   // in Namespace, whose pod the agent is; "" = none's
	Prove     bool     // try the node before it is used, and write what was found on its object
	Proof     Proof    // what the proof needs to know
	Taints    []string // taken off the node when it is ready

	Enroll     enroll.Config
	ProbeSNAT  bool          // the node rewrites probes to come from 169.254.7.127, and pods let those in
	DrainGrace time.Duration // how long a pod that leaves is still reachable by tunnel; 0 = 2 s

	LogLevel  string
	LogFormat logging.Format
}

// Proof is what the node's proof needs to know, beside the CNI configuration.
type Proof struct {
	XDS, CA         string // "https://host:port"; "" = not tried
	XDSRoot, CARoot string // files of the roots that the two are trusted by
	RootConfigMap   string // in the mesh's namespace, asked of the API server instead of the files; "" = none
}

// Keys of taints with which a node may begin its life; see Config.Taints.
const (
	TaintNotReady      = "culvert-mesh.github.io/not-ready"
	TaintIstioNotReady = "cni.istio.io/not-ready"
)

// The control plane's root certificate: where pods have it mounted, and its key in a
// ConfigMap.
const (
	defaultRoot = "/var/run/secrets/istio/root-cert.pem"
	rootKey     = "root-cert.pem"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// ParseConfig reads flags; NODE_NAME, ZTUNNEL_UDS_ADDRESS and AMBIENT_DNS_CAPTURE of the environment
// are the defaults of --node, --zds and --dns-capture. Where the mesh runs, and where its control plane
// is, it reads as ztunnel does: POD_NAMESPACE, XDS_ADDRESS, XDS_ROOT_CA, CA_ADDRESS and CA_ROOT_CA.
// Usage goes to out.
func ParseConfig(args, environment []string, out io.Writer) (Config, error) {
	env := environ.New(environment)
	c := Config{Enroll: enroll.DefaultConfig()}
	var admin, format string
	excluded, taints := list{}, list{}
	fs := flag.NewFlagSet("culvert-agent", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&c.Node, "node", env.Text("NODE_NAME", ""), "name of this node")
	fs.StringVar(&c.Socket, "socket", "/var/run/culvert-cni/pluginevent.sock", "unix socket on which pods are announced")
	fs.StringVar(&c.ZDS, "zds", env.Text("ZTUNNEL_UDS_ADDRESS", "/var/run/ztunnel/ztunnel.sock"), "unix socket to which ztunnel connects")
	fs.StringVar(&c.Handover, "handover", "", "unix socket at which ztunnels leave their sockets to successors; \"none\" is none (default: beside --zds)")
	fs.Var((*list)(&c.Folders), "folder", "folder of YAML written by users (repeatable)")
	fs.Var((*list)(&c.Objects), "objects", "folder of YAML written by controllers (repeatable)")
	fs.Var((*list)(&c.Patches), "patches", "folder of patches written by others (repeatable)")
	fs.StringVar(&c.PatchesOut, "patches-out", "", "folder to write pod annotations to")
	fs.StringVar(&c.NetnsDir, "netns-dir", "", "folder of pods' network namespaces, named by pod UID")
	fs.BoolVar(&c.Kube, "kube", false, "follow the pods of an API server instead of folders")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the API server, with --kube; default: as a pod does")
	fs.StringVar(&c.Proc, "proc", "/proc", "the node's procfs, where pods' network namespaces are found unless there is --netns-dir")
	fs.StringVar(&c.Mounts, "netns-mounts", "/var/run/netns", "where the runtime binds pods' network namespaces, for --uninstall")
	fs.StringVar(&c.CNI.Folder, "cni-conf-dir", "", "folder of the runtime's CNI configuration, to keep the plugin installed in")
	fs.StringVar(&c.CNI.BinDir, "cni-bin-dir", "/opt/cni/bin", "folder of the runtime's CNI programs")
	fs.StringVar(&c.CNI.Binary, "cni-plugin", "/usr/local/bin/culvert-cni", "the plugin's program, to be copied there")
	fs.StringVar(&c.CNI.Own, "cni-own-conf", "", "name of a CNI configuration of our own, before the cluster's; default: the cluster's is added to")
	fs.StringVar(&c.CNI.Only, "cni-conf", "", "name of the cluster's CNI configuration; default: the first")
	fs.BoolVar(&c.Uninstall, "uninstall", false, "take the plugin out of --cni-conf-dir and --cni-bin-dir, and end")
	fs.StringVar(&c.Eligibility, "eligibility", "", "file to keep the list of pods in the mesh in")
	fs.StringVar(&admin, "admin-listen", "", "address for health, metrics and status, such as :15014")
	fs.BoolVar(&c.Enroll.DNSCapture, "dns-capture", env.Bool("AMBIENT_DNS_CAPTURE", true), "capture DNS of pods that do not say otherwise")
	fs.BoolVar(&c.ProbeSNAT, "probe-snat", false, "have the node rewrite what root's processes open to pods, the kubelet's probes among it, to come from 169.254.7.127, which pods let in")
	fs.Var(&excluded, "exclude-namespace", "namespace that is never in the mesh (repeatable; default kube-system)")
	fs.DurationVar(&c.DrainGrace, "drain-grace", 2*time.Second, "how long a pod that leaves the mesh stays reachable by tunnel, and plaintext to a running one is let in when it joins and before it leaves")
	fs.StringVar(&c.Namespace, "namespace", env.Text("POD_NAMESPACE", ""), "namespace in which the mesh itself runs")
	fs.StringVar(&c.DaemonSet, "daemonset", "culvert-cni", "DaemonSet in --namespace that the agent belongs to: with it gone, the agent takes the mesh off the node at its end; \"\" is none")
	fs.BoolVar(&c.Prove, "prove", false, "try the node by a pod of our own through its CNI configuration, and write what was found on the node")
	fs.StringVar(&c.Proof.RootConfigMap, "root-configmap", "", "ConfigMap in --namespace with the control plane's root certificate, for --prove with --kube; default: the files XDS_ROOT_CA and CA_ROOT_CA")
	fs.Var(&taints, "taint", "key of a taint that is taken off the node when it is ready (repeatable; default "+TaintNotReady+" and "+TaintIstioNotReady+")")
	fs.StringVar(&c.LogLevel, "log-level", "info", "log level")
	fs.StringVar(&format, "log-format", "plain", "log format: plain or json")
	if err := fs.Parse(args); err != nil {
		return Config{}, fmt.Errorf("flags: %w", err)
	}
	if err := env.Err(); err != nil {
		return Config{}, err
	}
	if len(excluded) > 0 {
		c.Enroll.ExcludedNamespaces = excluded
	}
	c.Taints = taints
	if len(taints) == 0 {
		c.Taints = []string{TaintNotReady, TaintIstioNotReady}
	}
	c.Proof.XDS, c.Proof.CA = env.Text("XDS_ADDRESS", ""), env.Text("CA_ADDRESS", "")
	c.Proof.XDSRoot, c.Proof.CARoot = env.Text("XDS_ROOT_CA", defaultRoot), env.Text("CA_ROOT_CA", defaultRoot)
	if c.Kube && c.Eligibility == "" {
		c.Eligibility = plugin.DefaultEligibility
	}
	if c.Namespace == "" { // a process that is no pod
		c.DaemonSet = ""
	} else if !slices.Contains(c.Enroll.SystemNamespaces, c.Namespace) {
		c.Enroll.SystemNamespaces = append(c.Enroll.SystemNamespaces, c.Namespace)
	}
	switch c.Handover {
	case "":
		c.Handover = handover.PathOf(c.ZDS)
	case "none":
		c.Handover = ""
	}
	var err error
	if c.LogFormat, err = logging.ParseFormat(format); err != nil {
		return Config{}, fmt.Errorf("--log-format: %w", err)
	}
	if c.AdminListen, err = parseListen(admin); err != nil {
		return Config{}, fmt.Errorf("--admin-listen: %w", err)
	}
	return c, c.validate(fs.Args())
}

func (c Config) validate(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case c.Node == "":
		return errors.New("--node is required (or NODE_NAME in the environment)")
	case c.Kube && len(c.Folders)+len(c.Objects)+len(c.Patches)+len(c.PatchesOut) > 0:
		return errors.New("--kube excludes --folder, --objects, --patches and --patches-out: pods come from one place")
	case !c.Kube && c.PatchesOut == "":
		return errors.New("--patches-out is required (or --kube)")
	case !c.Kube && c.NetnsDir == "":
		return errors.New("--netns-dir is required (or --kube)")
	case c.Prove && (!c.Kube || c.CNI.Folder == ""):
		return errors.New("--prove needs --kube and --cni-conf-dir: what is tried, and where the result is written")
	case c.Proof.RootConfigMap != "" && (!c.Kube || c.Namespace == ""):
		return errors.New("--root-configmap needs --kube and --namespace: where it is")
	case c.Uninstall && c.CNI.Folder == "":
		return errors.New("--uninstall needs --cni-conf-dir: what it is to be taken out of")
	case c.CNI.Folder != "" && c.Eligibility == "":
		return errors.New("--eligibility is required with --cni-conf-dir: the plugin goes by it when no agent answers")
	}
	return nil
}

// parseListen reads "host:port" or ":port".
func parseListen(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	if strings.HasPrefix(s, ":") {
		s = "[::]" + s
	}
	return netip.ParseAddrPort(s)
}
