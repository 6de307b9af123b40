package app

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Config is everything that a ztunnel is told at start. ParseConfig fills it from
// the environment (protocols, Appendix A); nothing else reads the environment.
type Config struct {
	NodeName       string       // Kubernetes node; "" matches pods of every node
	PodName        string       // ztunnel's own pod
	PodNamespace   string       // ztunnel's own namespace
	ServiceAccount string       // ztunnel's own service account
	InstanceIP     netip.Addr   // in the node id; 1.1.1.1 when not told
	Cluster        mesh.Cluster // sent with every call to the control plane
	ClusterDomain  string       // suffix of service names
	Network        mesh.Network // the network that this node is in

	ZDSSocket string // unix socket of the node agent; "" serves no pod
	ReusePort bool   // a successor may listen beside this process
	Mark      uint32 // SO_MARK of every socket in a pod's namespace

	XDS       Endpoint // Address "" = no control plane
	CA        Endpoint
	Token     TokenSource
	FakeCA    bool          // certificates of a public test root: insecure
	SecretTTL time.Duration // certificate life asked of the CA

	LocalXDSPath string // file with workloads, services and policies
	LocalXDS     string // the same, inline

	PoolMaxStreams   int           // streams per tunnel connection
	PoolIdle         time.Duration // an unused tunnel connection is closed after it
	StreamWindow     uint32        // largest HTTP/2 stream window, bytes; 0 = the tunnel's default
	ConnectionWindow uint32        // largest HTTP/2 connection window, bytes; 0 = the tunnel's default
	FrameSize        uint32        // largest HTTP/2 frame, bytes; 0 = the tunnel's default

	KeepAlive   KeepAlive
	DrainTime   time.Duration // after SIGTERM open connections may go on for so long
	OrigSrc     OrigSrc
	IPv6        bool // false: listeners take IPv4 only
	AppLoopback bool // PROXY application tunnels are reached on loopback
	Baggage     bool // answer a CONNECT with baggage

	LogFilter  string // RUST_LOG
	LogJSON    bool
	LogPolicy  bool // policy decisions at info level
	AdminPort  uint16
	StatsPort  uint16
	ReadyPort  uint16
	Metadata   map[string]string // of the xDS node
	DNSCapture bool              // asked for by proxy metadata; not served
}

// Endpoint is one channel to the control plane.
type Endpoint struct {
	Address string // URL with scheme https or http
	Roots   RootSource
	AltName string // accepted beside the address's host
	Headers map[string]string
}

// RootSource says where the roots of a channel come from.
type RootSource struct {
	System bool
	PEM    []byte
	Path   string
}

// TokenSource says where the bearer token comes from. The zero one sends none.
type TokenSource struct {
	Literal string
	Path    string
}

// KeepAlive is the TCP keepalive of application sockets.
type KeepAlive struct {
	Enabled        bool
	Idle, Interval time.Duration
	Retries        int
	UserTimeout    bool // TCP_USER_TIMEOUT of the same length
}

// OrigSrc says whether applications see the client's own address.
type OrigSrc uint8

const (
	OrigSrcAuto OrigSrc = iota // when the kernel lets us
	OrigSrcOn
	OrigSrcOff
)

const (
	defaultRoots = "./var/run/secrets/istio/root-cert.pem"
	defaultToken = "./var/run/secrets/tokens/istio-token"
	meshConfig   = "./etc/istio/config/mesh"
	inCluster    = "https://istiod.istio-system.svc:15012"
	outOfCluster = "https://localhost:15012"
)

// ParseConfig reads a Config from "NAME=value" pairs and from the mesh-wide file
// that upstream reads. Every mistake is reported, each with the variable's name.
func ParseConfig(environ []string) (Config, error) {
	e := newEnvironment(environ)
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
	c.readIdentity(e)
	c.readPod(e)
	c.readControlPlane(e, pc)
	c.readTunnel(e)
	c.readLogging(e)
	c.refuseUnsupported(e)
	return c, e.err()
}

func (c *Config) readMetadata(e *environment) {
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	for name, v := range e.prefixed("ISTIO_META_") {
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
	c.DNSCapture = c.Metadata["DNS_CAPTURE"] == "true"
}

func (c *Config) readIdentity(e *environment) {
	c.NodeName = e.text("NODE_NAME", "")
	c.PodName = e.text("POD_NAME", "")
	c.PodNamespace = e.text("POD_NAMESPACE", "")
	c.ServiceAccount = e.text("SERVICE_ACCOUNT", "")
	c.ClusterDomain = e.text("CLUSTER_DOMAIN", mesh.DefaultClusterDomain)
	c.Network = mesh.Network(e.text("NETWORK", ""))
	c.Cluster = mesh.Cluster(e.text("CLUSTER_ID", string(mesh.DefaultCluster)))
	if id := c.Metadata["CLUSTER_ID"]; id != "" {
		c.Cluster = mesh.Cluster(id)
	}
	ip := e.text("INSTANCE_IP", "1.1.1.1")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		e.fail("INSTANCE_IP", "%q is no IP address", ip)
	}
	c.InstanceIP = addr
}

func (c *Config) readPod(e *environment) {
	c.ZDSSocket = e.text("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock")
	c.ReusePort = e.boolean("INPOD_PORT_REUSE", true)
	c.Mark = uint32(e.integer("PACKET_MARK", mesh.MarkProxy, 1, math.MaxUint32))
	c.IPv6 = e.boolean("IPV6_ENABLED", true)
	c.AppLoopback = e.boolean("LOCALHOST_APP_TUNNEL", true)
	c.Baggage = e.boolean("ENABLE_RESPONSE_BAGGAGE", true)
	if v, set := e.lookup("ENABLE_ORIG_SRC"); set && v != "" {
		c.OrigSrc = OrigSrcOff
		if e.boolean("ENABLE_ORIG_SRC", false) {
			c.OrigSrc = OrigSrcOn
		}
	}
	c.KeepAlive = KeepAlive{
		Enabled:     e.boolean("KEEPALIVE_ENABLED", true),
		Idle:        e.duration("KEEPALIVE_TIME", 180*time.Second),
		Interval:    e.duration("KEEPALIVE_INTERVAL", 180*time.Second),
		Retries:     int(e.integer("KEEPALIVE_RETRIES", 9, 1, 127)),
		UserTimeout: e.boolean("USER_TIMEOUT_ENABLED", false),
	}
	c.DrainTime = drainTime(e)
}

// drainTime leaves the process a little of the pod's grace period to end in.
func drainTime(e *environment) time.Duration {
	const unknown = 5 * time.Second
	derived := unknown
	if e.text("TERMINATION_GRACE_PERIOD_SECONDS", "") != "" {
		grace := time.Duration(e.integer("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 1<<31)) * time.Second
		if derived = grace - time.Second; grace > 10*time.Second {
			derived = grace - 5*time.Second
		}
		derived = max(derived, time.Second)
	}
	return e.duration("CONNECTION_TERMINATION_DEADLINE", derived)
}

func (c *Config) readControlPlane(e *environment, pc proxyConfig) {
	home := outOfCluster
	if _, ok := e.lookup("KUBERNETES_SERVICE_HOST"); ok {
		home = inCluster
	}
	c.FakeCA = e.boolean("FAKE_CA", false)
	c.SecretTTL = e.duration("SECRET_TTL", 24*time.Hour)
	c.LocalXDSPath = e.text("LOCAL_XDS_PATH", "")
	c.LocalXDS = e.text("LOCAL_XDS", "")
	c.XDS = Endpoint{
		Address: c.controlPlane(e, "XDS_ADDRESS", pc.DiscoveryAddress, home),
		Roots:   rootSource(e.text("XDS_ROOT_CA", defaultRoots)),
		AltName: e.text("ALT_XDS_HOSTNAME", ""),
		Headers: e.prefixed("XDS_HEADER_"),
	}
	c.CA = Endpoint{
		Address: c.controlPlane(e, "CA_ADDRESS", "", home),
		Roots:   rootSource(e.text("CA_ROOT_CA", defaultRoots)),
		AltName: e.text("ALT_CA_HOSTNAME", ""),
		Headers: e.prefixed("CA_HEADER_"),
	}
	c.Token = tokenSource(e)
	if c.CA.Address == "" && !c.FakeCA {
		e.fail("CA_ADDRESS", "is empty; without a CA there are no identities (FAKE_CA=true is for tests)")
	}
}

// controlPlane reads an address. One that is set to nothing turns the channel
// off; one without a scheme is https.
func (c *Config) controlPlane(e *environment, name, configured, fallback string) string {
	v, set := e.lookup(name)
	if !set {
		if v = configured; v == "" {
			v = fallback
		}
	}
	if v == "" {
		return ""
	}
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	u, err := url.Parse(v)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		e.fail(name, "%q is no http or https address", v)
	}
	return v
}

func rootSource(v string) RootSource {
	switch {
	case v == "SYSTEM":
		return RootSource{System: true}
	case strings.Contains(v, "-----BEGIN CERTIFICATE-----"):
		return RootSource{PEM: []byte(v)}
	}
	return RootSource{Path: v}
}

// tokenSource takes the value as a path if there is such a file, else as the
// token itself.
func tokenSource(e *environment) TokenSource {
	v, set := e.lookup("AUTH_TOKEN")
	if !set {
		v = defaultToken
	}
	if _, err := os.Stat(v); err == nil {
		return TokenSource{Path: v}
	}
	if !set {
		return TokenSource{}
	}
	return TokenSource{Literal: v}
}

func (c *Config) readTunnel(e *environment) {
	c.PoolMaxStreams = int(e.integer("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, math.MaxUint16))
	c.PoolIdle = e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute)
	c.StreamWindow = uint32(e.integer("HTTP2_STREAM_WINDOW_SIZE", 0, 65535, math.MaxInt32))
	c.ConnectionWindow = uint32(e.integer("HTTP2_CONNECTION_WINDOW_SIZE", 0, 65535, math.MaxInt32))
	c.FrameSize = uint32(e.integer("HTTP2_FRAME_SIZE", 0, 16384, 1<<24-1))
}

func (c *Config) readLogging(e *environment) {
	c.LogFilter = e.text("RUST_LOG", "info")
	c.LogPolicy = e.boolean("AUTHZ_POLICY_INFO_LOGGING", false)
	switch v := e.text("LOG_FORMAT", "plain"); v {
	case "plain":
	case "json":
		c.LogJSON = true
	default:
		e.fail("LOG_FORMAT", "%q is neither plain nor json", v)
	}
}

// refuseUnsupported makes a setting that would be ignored a start-up error.
func (c *Config) refuseUnsupported(e *environment) {
	e.refuse("PROXY_MODE", e.text("PROXY_MODE", "shared") != "shared")
	e.refuse("XDS_ON_DEMAND", e.boolean("XDS_ON_DEMAND", false))
	e.refuse("UNSTABLE_ENABLE_SOCKS5", e.boolean("UNSTABLE_ENABLE_SOCKS5", false))
	e.refuse("TLS12_ENABLED", e.boolean("TLS12_ENABLED", false))
	e.refuse("COMPLIANCE_POLICY", e.text("COMPLIANCE_POLICY", "") != "")
	e.refuse("CRL_PATH", e.text("CRL_PATH", "") != "")
	e.refuse("ENABLE_PROXY", !e.boolean("ENABLE_PROXY", true))
}

// proxyConfig is what we read of Istio's ProxyConfig. Fields of other proxies
// are in the same document and are ignored.
type proxyConfig struct {
	DiscoveryAddress string            `yaml:"discoveryAddress"`
	ProxyAdminPort   *int              `yaml:"proxyAdminPort"`
	StatsPort        *int              `yaml:"statsPort"`
	ProxyMetadata    map[string]string `yaml:"proxyMetadata"`
}

// readProxyConfig merges the mesh-wide defaults with PROXY_CONFIG, which wins.
func readProxyConfig(e *environment) (proxyConfig, error) {
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
	if err := yaml.Unmarshal([]byte(e.text("PROXY_CONFIG", "")), &pc); err != nil {
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

func (proxyConfig) port(name string, v *int, fallback uint16, e *environment) uint16 {
	switch {
	case v == nil:
		return fallback
	case *v < 0 || *v > math.MaxUint16:
		e.fail("PROXY_CONFIG", "%s %d is no port", name, *v)
	}
	return uint16(*v)
}
