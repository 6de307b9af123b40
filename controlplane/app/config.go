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

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Config is the control plane's configuration.
type Config struct {
	Layers     folder.Layers // where objects come from
	Kube       bool          // objects come from an API server instead
	Kubeconfig string        // how to reach it; "" = as a pod does
	Audiences  []string      // that tokens must be for, with Kube
	Namespace  string        // the mesh's own, with Kube
	Lease      string        // its name; who holds it does what only one replica does. "" = every replica
	Replica    string        // this replica's name, with Kube
	Drain      time.Duration // to send clients to other replicas at the end, with Kube
	NoTrust    bool          // somebody else puts the mesh's roots into namespaces
	CASecret   string        // Secret of the users' own certificate authority, with Kube
	CAAddress  string        // who signs for proxies in our stead; "" = we do
	State      string        // folder of the certificate authority; root-cert.pem appears there. "" with Kube: Secrets
	TokenKeys  string        // JWKS file of the keys that sign service-account tokens; not with Kube
	Mesh       compile.Mesh
	Gateways   GatewayConfig

	XDSListen     string // xDS and CA, TLS
	AdminListen   string
	ReadyListen   string
	MetricsListen string
	Hostnames     []string     // DNS names of the serving certificate
	Addresses     []netip.Addr // IP addresses of the serving certificate

	WebhookListen        string // validating webhook, TLS, with Kube; "" = none
	WebhookFailurePolicy string // "Fail" or "Ignore": what becomes of objects while the webhook, once reached, is not

	NodeAccounts []string // "namespace/account" that may ask for certificates of pods on their node; nil = the usual ones
	LogLevel     string
	LogFormat    string
}

// texts is a flag that may be given several times.
type texts struct{ values *[]string }

func (t texts) String() string {
	if t.values == nil {
		return ""
	}
	return strings.Join(*t.values, ",")
}

func (t texts) Set(v string) error {
	*t.values = append(*t.values, v)
	return nil
}

// ParseConfig reads flags, and LOG_LEVEL and LOG_FORMAT from the environment.
// Usage goes to out. It returns flag.ErrHelp when help was asked for.
func ParseConfig(args, environment []string, out io.Writer) (Config, error) {
	env := environ.New(environment)
	var c Config
	var addrs []string
	var cluster, network string
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Var(texts{&c.Layers.Base}, "folder", "`folder` of YAML that people write (repeatable)")
	fs.Var(texts{&c.Layers.Objects}, "objects", "`folder` of objects that controllers write, merged over --folder (repeatable)")
	fs.Var(texts{&c.Layers.Patches}, "patches", "`folder` of merge patches that never create objects (repeatable)")
	fs.BoolVar(&c.Kube, "kube", false, "read objects from an API server instead of folders, and have it review tokens")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server; default: as a pod does")
	fs.Var(texts{&c.Audiences}, "audience", "`audience` that tokens must be for, with --kube (repeatable; default istio-ca)")
	fs.StringVar(&c.Namespace, "namespace", env.Text("POD_NAMESPACE", "culvert-system"), "`namespace` of the mesh's own objects, with --kube")
	fs.StringVar(&c.Lease, "lease", "culvert-controlplane", "`name` of the Lease of the replica that does what only one may, with --kube; empty: this one does")
	fs.StringVar(&c.State, "state", "", "`folder` of the certificate authority; default with --kube: Secrets in --namespace")
	fs.DurationVar(&c.Drain, "drain", 6*time.Second, "`time` in which clients are sent to other replicas at the end, with --kube; 0: at once")
	trust := fs.Bool("trust-bundle", true, "keep the mesh's roots in ConfigMap istio-ca-root-cert of each namespace, with --kube")
	fs.StringVar(&c.CASecret, "ca-secret-name", "cacerts", "`name` of the Secret with the users' own certificate authority, with --kube")
	fs.StringVar(&c.CAAddress, "ca-address", "", "`URL` of another certificate authority, which waypoints are told of: this program signs for no proxy then")
	fs.StringVar(&c.TokenKeys, "token-keys", "", "JWKS `file` of the keys that sign service-account tokens")
	fs.StringVar(&c.XDSListen, "xds-listen", fmt.Sprintf(":%d", mesh.PortXDS), "`address` of xDS and CA")
	fs.StringVar(&c.AdminListen, "admin-listen", fmt.Sprintf("127.0.0.1:%d", mesh.PortAdmin), "`address` of the admin server")
	fs.StringVar(&c.ReadyListen, "ready-listen", fmt.Sprintf(":%d", mesh.PortReady), "`address` of readiness")
	fs.StringVar(&c.MetricsListen, "metrics-listen", ":15014", "`address` of metrics")
	fs.StringVar(&c.WebhookListen, "webhook-listen", ":15017", "`address` of the validating webhook, with --kube; empty: none")
	fs.StringVar(&c.WebhookFailurePolicy, "webhook-failure-policy", "Fail", "Fail or Ignore: `what` becomes of objects while the webhook, once reached, is not, with --kube")
	fs.Var(texts{&c.Hostnames}, "hostname", "DNS `name` of the serving certificate (repeatable)")
	fs.Var(texts{&addrs}, "ip", "IP `address` of the serving certificate (repeatable)")
	fs.StringVar(&c.Mesh.TrustDomain, "trust-domain", mesh.DefaultTrustDomain, "trust `domain`")
	fs.StringVar(&c.Mesh.ClusterDomain, "cluster-domain", mesh.DefaultClusterDomain, "DNS `domain` of services")
	fs.StringVar(&cluster, "cluster", string(mesh.DefaultCluster), "cluster `name`")
	fs.StringVar(&network, "network", "", "network `name`")
	fs.StringVar(&c.Mesh.RootNamespace, "root-namespace", "istio-system", "`namespace` of mesh-wide policies")
	fs.BoolVar(&c.Mesh.NetworkPolicies, "network-policies", false, "have ztunnels hold tunnels to the NetworkPolicies of the pods where they end")
	fs.Var(texts{&c.NodeAccounts}, "node-account", "`namespace/account` of node proxies (repeatable)")
	c.Gateways.flags(fs)
	fs.StringVar(&c.LogLevel, "log-level", env.Text("LOG_LEVEL", ""), "log `filter`")
	fs.StringVar(&c.LogFormat, "log-format", env.Text("LOG_FORMAT", ""), "plain or json")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if len(c.Audiences) == 0 {
		c.Audiences = []string{"istio-ca"}
	}
	c.NoTrust = !*trust
	if !c.Kube { // there is no other replica
		c.Drain = 0
	}
	c.Replica = env.Text("POD_NAME", "")
	c.Mesh.Cluster, c.Mesh.Network = mesh.Cluster(cluster), mesh.Network(network)
	return c, errors.Join(c.addresses(addrs), c.check(fs.Args()))
}

func (c *Config) addresses(texts []string) error {
	c.Hostnames = append(c.Hostnames, "localhost", "istiod.istio-system.svc")
	if c.Kube {
		for _, service := range []string{"culvert-controlplane", "istiod"} {
			name := service + "." + c.Namespace
			for _, n := range []string{name, name + ".svc", name + ".svc." + c.Mesh.ClusterDomain} {
				if !slices.Contains(c.Hostnames, n) {
					c.Hostnames = append(c.Hostnames, n)
				}
			}
		}
	}
	c.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, s := range texts {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--ip %q: %w", s, err)
		}
		c.Addresses = append(c.Addresses, a)
	}
	return nil
}

func (c *Config) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case c.Kube && len(c.Layers.Base)+len(c.Layers.Objects)+len(c.Layers.Patches) > 0:
		return errors.New("--kube excludes --folder, --objects and --patches: objects come from one place")
	case !c.Kube && len(c.Layers.Base)+len(c.Layers.Objects) == 0:
		return errors.New("--folder is required (or --kube)")
	case c.State == "" && !c.Kube:
		return errors.New("--state is required (or --kube)")
	case c.Kube && c.TokenKeys != "":
		return errors.New("--kube excludes --token-keys: the API server reviews tokens")
	case c.WebhookFailurePolicy != "Fail" && c.WebhookFailurePolicy != "Ignore":
		return fmt.Errorf("--webhook-failure-policy %q: must be Fail or Ignore", c.WebhookFailurePolicy)
	case !c.Kube && c.TokenKeys == "":
		return errors.New("--token-keys is required: without it no proxy can say who it is")
	}
	return nil
}
