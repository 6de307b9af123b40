package app

import (
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/channel"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Config is everything that a waypoint is told at start. ParseConfig fills it
// from the environment; nothing else reads the environment.
type Config struct {
	Gateway        string // GATEWAY_NAME, the Gateway object that this proxy serves
	PodName        string
	Namespace      string
	ServiceAccount string
	NodeName       string
	InstanceIP     netip.Addr
	Cluster        mesh.Cluster
	Network        mesh.Network
	TrustDomain    string
	Domain         string // of the cluster

	XDS, CA   channel.Channel
	Token     channel.Token
	SecretTTL time.Duration

	LogFormat string
	LogLevel  string
	DrainTime time.Duration // after SIGTERM requests may go on for so long
	MinDrain  time.Duration // the part of it in which new tunnels are accepted; at most half
	Ports     Ports
}

// Ports are where a waypoint listens.
type Ports struct{ HBONE, Admin, Metrics, Ready uint16 }

// Identity is the waypoint's own.
func (c Config) Identity() mesh.Identity {
	return mesh.Identity{TrustDomain: c.TrustDomain, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
}

// ParseConfig reads a Config from "NAME=value" pairs. Every mistake is reported,
// each with its variable's name.
func ParseConfig(environment []string) (Config, error) {
	e := environ.New(environment)
	c := Config{
		PodName:        e.Required("POD_NAME"),
		Namespace:      e.Required("POD_NAMESPACE"),
		ServiceAccount: e.Required("SERVICE_ACCOUNT"),
		NodeName:       e.Text("NODE_NAME", ""),
		Cluster:        mesh.Cluster(e.Text("CLUSTER_ID", string(mesh.DefaultCluster))),
		Network:        mesh.Network(e.Text("NETWORK", "")),
		TrustDomain:    e.Text("TRUST_DOMAIN", mesh.DefaultTrustDomain),
		Domain:         e.Text("CLUSTER_DOMAIN", mesh.DefaultClusterDomain),
		Token:          channel.ReadToken(e),
		LogFormat:      e.Text("LOG_FORMAT", "plain"),
		LogLevel:       e.Text("LOG_LEVEL", "info"),
		DrainTime:      e.DrainTime(25 * time.Second),
		SecretTTL:      24 * time.Hour,
		Ports: Ports{
			HBONE:   e.Port("HBONE_PORT", mesh.PortHBONE),
			Admin:   e.Port("ADMIN_PORT", mesh.PortAdmin),
			Metrics: e.Port("METRICS_PORT", mesh.PortMetrics),
			Ready:   e.Port("READY_PORT", mesh.PortReady),
		},
	}
	c.Gateway = e.Text("GATEWAY_NAME", c.ServiceAccount)
	c.XDS = channel.Read(e, "XDS", channel.InCluster)
	c.CA = channel.Read(e, "CA", c.XDS.Address)
	if c.XDS.Address == "" || c.CA.Address == "" {
		e.Failf("XDS_ADDRESS", "and CA_ADDRESS must not be empty: a waypoint knows nothing by itself")
	}
	c.MinDrain = min(e.Duration("MINIMUM_DRAIN_DURATION", 0), c.DrainTime/2)
	c.readInstanceIP(e)
	return c, e.Err()
}

func (c *Config) readInstanceIP(e *environ.Env) {
	text := e.Required("INSTANCE_IP")
	addr, err := netip.ParseAddr(text)
	if err != nil && text != "" {
		e.Failf("INSTANCE_IP", "%q is no IP address", text)
	}
	c.InstanceIP = addr.Unmap()
}
