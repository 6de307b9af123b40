package app

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/channel"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/logging/otlp"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Config is everything that a ztunnel is told at start. ParseConfig fills it from
// the environment (docs/ztunnel-environment.md); nothing else reads the environment.
type Config struct {
	NodeName       string       // Kubernetes node; "" matches pods of every node
	PodName        string       // ztunnel's own pod
	PodNamespace   string       // ztunnel's own namespace
	ServiceAccount string       // ztunnel's own service account
	TrustDomain    string       // ztunnel's own
	RootNamespace  string       // of policies for the whole mesh
	InstanceIP     netip.Addr   // in the node id; 1.1.1.1 when not told
	Cluster        mesh.Cluster // sent with every call to the control plane
	ClusterDomain  string       // suffix of service names
	Network        mesh.Network // the network that this node is in

	Dedicated mesh.PodInfo // the one workload that is served, in our own namespace; zero = the node's pods
	SOCKS     bool         // a SOCKS 5 server on loopback of each pod, for tests
	ZDSSocket string       // unix socket of the node agent; "" serves no pod
	ReusePort bool         // a successor may listen beside this process
	Mark      uint32       // SO_MARK of every socket in a pod's namespace

	XDS       channel.Channel // Address "" = no control plane
	CA        channel.Channel
	Token     channel.Token
	FakeCA    bool          // certificates of a public test root: insecure
	SecretTTL time.Duration // certificate life asked of the CA

	Identities Identities

	LocalXDSPath string // file with workloads, services and policies
	LocalXDS     string // the same, inline

	PoolMaxStreams   int           // streams per tunnel connection
	PoolIdle         time.Duration // an unused tunnel connection is closed after it
	StreamWindow     uint32        // largest HTTP/2 stream window, bytes; 0 = the tunnel's default
	ConnectionWindow uint32        // largest HTTP/2 connection window, bytes; 0 = the tunnel's default
	FrameSize        uint32        // largest HTTP/2 frame, bytes; 0 = the tunnel's default

	KeepAlive   KeepAlive
	DrainTime   time.Duration // after SIGTERM open connections may go on for so long
	Handover    Handover
	OrigSrc     OrigSrc
	IPv6        bool // false: listeners take IPv4 only
	AppLoopback bool // PROXY application tunnels are reached on loopback
	Baggage     bool // answer a CONNECT with baggage

	Threads int // that run Go code at once; 0 = by the number of CPUs

	LogFilter  string // RUST_LOG
	LogJSON    bool
	LogPolicy  bool        // policy decisions at info level
	OTLP       otlp.Config // where log lines go besides
	AdminPort  uint16
	StatsPort  uint16
	ReadyPort  uint16
	Metadata   map[string]string // of the xDS node
	OnDemand   bool              // the control plane is asked for what connections need, instead of everything
	DNSCapture bool              // the pods' DNS is answered
	DNSAddrs   []netip.AddrPort  // where: on loopback, IPv4 first
	// PreferredNamespace is whose services go before others of the same hostname.
	PreferredNamespace string
}

// KeepAlive is the TCP keepalive of application sockets.
type KeepAlive struct {
	Enabled        bool
	Idle, Interval time.Duration
	Retries        int
	UserTimeout    bool // TCP_USER_TIMEOUT of the same length
}

// Own returns ztunnel's own pod and its identity; false when not all of its names
// are told.
func (c Config) Own() (mesh.PodInfo, mesh.Identity, bool) {
	info := mesh.PodInfo{Name: c.PodName, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}
	id := mesh.Identity{TrustDomain: c.TrustDomain, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}
	return info, id, c.PodName != "" && c.PodNamespace != "" && c.ServiceAccount != ""
}

// OrigSrc says whether applications see the client's own address.
type OrigSrc uint8

const (
	OrigSrcAuto OrigSrc = iota // when the kernel lets us
	OrigSrcOn
	OrigSrcOff
)

const (
	meshConfig   = "./etc/istio/config/mesh"
	outOfCluster = "https://localhost:15012"
)

// ParseConfig reads a Config from "NAME=value" pairs and from the mesh-wide file
// that upstream reads. Every mistake is reported, each with the variable's name.
func ParseConfig(environment []string) (Config, error) { return readConfig(environ.New(environment)) }

func readConfig(e *environ.Env) (Config, error) {
	pc, err := readProxyConfig(e)
	if err != nil {
		return Config{}, err
	}
	c := Config{
		AdminPort: pc.port("proxyAdminPort", pc.ProxyAdminPort, mesh.PortAdmin, e),
		StatsPort: pc.port("statsPort", pc.StatsPort, mesh.PortMetrics, e),
		ReadyPort: mesh.PortReady,
		Metadata:  pc.ProxyMetadata,
	}
	c.readMetadata(e)
	c.readDNS(e)
	c.readIdentity(e)
	c.readPod(e)
	c.readControlPlane(e, pc)
	c.readTunnel(e)
	c.readThreads(e, pc)
	c.readLogging(e)
	c.refuseUnsupported(e)
	return c, e.Err()
}

func (c *Config) readMetadata(e *environ.Env) {
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	for name, v := range e.Prefixed("ISTIO_META_") {
		c.Metadata[name] = v
	}
	for name := range c.Metadata {
		if rest, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			if _, told := c.Metadata[rest]; !told {
				c.Metadata[rest] = c.Metadata[name]
			}
			delete(c.Metadata, name)
		}
	}
}

func (c *Config) readIdentity(e *environ.Env) {
	c.NodeName = e.Text("NODE_NAME", "")
	c.PodName = e.Text("POD_NAME", "")
	c.PodNamespace = e.Text("POD_NAMESPACE", "")
	c.ServiceAccount = e.Text("SERVICE_ACCOUNT", "")
	c.TrustDomain = e.Text("TRUST_DOMAIN", mesh.DefaultTrustDomain)
	c.RootNamespace = e.Text("ROOT_NAMESPACE", "istio-system")
	c.ClusterDomain = e.Text("CLUSTER_DOMAIN", mesh.DefaultClusterDomain)
	c.Network = mesh.Network(e.Text("NETWORK", ""))
	c.Cluster = mesh.Cluster(e.Text("CLUSTER_ID", string(mesh.DefaultCluster)))
	if id := c.Metadata["CLUSTER_ID"]; id != "" {
		c.Cluster = mesh.Cluster(id)
	}
	ip := e.Text("INSTANCE_IP", "1.1.1.1")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		e.Failf("INSTANCE_IP", "%q is no IP address", ip)
	}
	c.InstanceIP = addr
}

func (c *Config) readPod(e *environ.Env) {
	c.ZDSSocket = "/var/run/ztunnel/ztunnel.sock"
	if path, set := e.Lookup("INPOD_UDS"); set {
		c.ZDSSocket = path
	}
	c.ReusePort = e.Bool("INPOD_PORT_REUSE", true)
	c.Mark = uint32(e.Integer("PACKET_MARK", mesh.MarkProxy, 1, math.MaxUint32))
	c.IPv6 = e.Bool("IPV6_ENABLED", true)
	c.AppLoopback = e.Bool("LOCALHOST_APP_TUNNEL", true)
	c.Baggage = e.Bool("ENABLE_RESPONSE_BAGGAGE", true)
	if v, set := e.Lookup("ENABLE_ORIG_SRC"); set && v != "" {
		c.OrigSrc = OrigSrcOff
		if e.Bool("ENABLE_ORIG_SRC", false) {
			c.OrigSrc = OrigSrcOn
		}
	}
	c.KeepAlive = KeepAlive{
		Enabled:     e.Bool("KEEPALIVE_ENABLED", true),
		Idle:        e.Duration("KEEPALIVE_TIME", 180*time.Second),
		Interval:    e.Duration("KEEPALIVE_INTERVAL", 180*time.Second),
		Retries:     int(e.Integer("KEEPALIVE_RETRIES", 9, 1, 127)),
		UserTimeout: e.Bool("USER_TIMEOUT_ENABLED", false),
	}
	c.DrainTime = e.Duration("CONNECTION_TERMINATION_DEADLINE", e.DrainTime(5*time.Second))
	c.SOCKS = e.Bool("UNSTABLE_ENABLE_SOCKS5", false)
	c.readHandover(e)
	c.readMode(e)
}

func (c *Config) readControlPlane(e *environ.Env, pc proxyConfig) {
	home := outOfCluster
	if _, ok := e.Lookup("KUBERNETES_SERVICE_HOST"); ok {
		home = channel.InCluster
	}
	c.FakeCA = e.Bool("FAKE_CA", false)
	c.SecretTTL = e.Duration("SECRET_TTL", 24*time.Hour)
	c.LocalXDSPath = e.Text("LOCAL_XDS_PATH", "")
	c.LocalXDS = e.Text("LOCAL_XDS", "")
	c.CA = channel.Read(e, "CA", home)
	if pc.DiscoveryAddress != "" {
		home = pc.DiscoveryAddress
	}
	c.XDS = channel.Read(e, "XDS", home)
	c.Token = channel.ReadToken(e)
	c.readIdentities(e)
}

func (c *Config) readTunnel(e *environ.Env) {
	c.PoolMaxStreams = int(e.Integer("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, math.MaxUint16))
	c.PoolIdle = e.Duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute)
	c.StreamWindow = uint32(e.Integer("HTTP2_STREAM_WINDOW_SIZE", 0, 65535, math.MaxInt32))
	c.ConnectionWindow = uint32(e.Integer("HTTP2_CONNECTION_WINDOW_SIZE", 0, 65535, math.MaxInt32))
	c.FrameSize = uint32(e.Integer("HTTP2_FRAME_SIZE", 0, 16384, 1<<24-1))
}

// readThreads reads a number, or a percentage of the CPUs that we may use, which
// are the machine's unless we are told.
func (c *Config) readThreads(e *environ.Env, pc proxyConfig) {
	if n := pc.Concurrency; n != nil && *n < 0 {
		e.Failf("PROXY_CONFIG", "concurrency %d is negative", *n)
	} else if n != nil {
		c.Threads = *n
	}
	cpus := float64(e.Integer("ZTUNNEL_RESOURCE_CPU_LIMIT", uint64(runtime.NumCPU()), 1, maxThreads))
	cpus = float64(e.Integer("ZTUNNEL_CPU_LIMIT", uint64(cpus), 1, maxThreads))
	const name = "ZTUNNEL_WORKER_THREADS"
	text, percentage := strings.CutSuffix(e.Text(name, ""), "%")
	if !percentage {
		c.Threads = int(e.Integer(name, uint64(c.Threads), 1, maxThreads))
		return
	}
	share, err := strconv.ParseFloat(text, 64)
	if err != nil || !(share > 0 && share <= 100) {
		e.Failf(name, "%q is no percentage above 0%% and up to 100%%", text+"%")
		return
	}
	c.Threads = int(math.Ceil(cpus * share / 100))
}

// maxThreads is beyond every machine.
const maxThreads = 1 << 16

func (c *Config) readLogging(e *environ.Env) {
	c.LogFilter = e.Text("RUST_LOG", "info")
	c.LogPolicy = e.Bool("AUTHZ_POLICY_INFO_LOGGING", false)
	switch v := e.Text("LOG_FORMAT", "plain"); v {
	case "plain":
	case "json":
		c.LogJSON = true
	default:
		e.Failf("LOG_FORMAT", "%q is neither plain nor json", v)
	}
	c.OTLP = otlp.ReadConfig(e, map[string]string{
		"service.name": "ztunnel", "service.version": run.Version(), "service.instance.id": c.PodName,
		"k8s.node.name": c.NodeName, "k8s.pod.name": c.PodName, "k8s.namespace.name": c.PodNamespace, "k8s.cluster.name": string(c.Cluster),
	})
}

// refuseUnsupported makes a setting that would be ignored a start-up error.
func (c *Config) refuseUnsupported(e *environ.Env) {
	if c.OnDemand = e.Bool("XDS_ON_DEMAND", false); c.OnDemand && c.DNSCapture {
		e.Failf("XDS_ON_DEMAND", "needs ISTIO_META_DNS_CAPTURE=false: mesh names are answered only by who knows them all")
	}
	e.Refuse("ENABLE_PROXY", !e.Bool("ENABLE_PROXY", true))
}

// proxyConfig is what we read of Istio's ProxyConfig. Fields of other proxies
// are in the same document and are ignored.
type proxyConfig struct {
	DiscoveryAddress string            `yaml:"discoveryAddress"`
	ProxyAdminPort   *int              `yaml:"proxyAdminPort"`
	StatsPort        *int              `yaml:"statsPort"`
	Concurrency      *int              `yaml:"concurrency"` // 0 = the default
	ProxyMetadata    map[string]string `yaml:"proxyMetadata"`
}

// readProxyConfig merges the mesh-wide defaults with PROXY_CONFIG, which wins.
func readProxyConfig(e *environ.Env) (proxyConfig, error) {
	var file struct {
		DefaultConfig proxyConfig `yaml:"defaultConfig"`
	}
	text, err := os.ReadFile(meshConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return proxyConfig{}, fmt.Errorf("read mesh configuration: %w", err)
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return proxyConfig{}, fmt.Errorf("read mesh configuration %s: %w", meshConfig, err)
	}
	pc := file.DefaultConfig
	defaults := pc.ProxyMetadata
	pc.ProxyMetadata = nil
	if err := yaml.Unmarshal([]byte(e.Text("PROXY_CONFIG", "")), &pc); err != nil {
		return proxyConfig{}, fmt.Errorf("PROXY_CONFIG: %w", err)
	}
	merged := map[string]string{}
	for _, m := range []map[string]string{defaults, pc.ProxyMetadata} {
		for k, v := range m {
			merged[k] = v
		}
	}
	pc.ProxyMetadata = merged
	return pc, nil
}

func (proxyConfig) port(name string, v *int, fallback uint16, e *environ.Env) uint16 {
	switch {
	case v == nil:
		return fallback
	case *v < 0 || *v > math.MaxUint16:
		e.Failf("PROXY_CONFIG", "%s %d is no port", name, *v)
	}
	return uint16(*v)
}
