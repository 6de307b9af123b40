package app

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

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

	XDS, CA   Channel
	Token     string // a file, or the token itself
	SecretTTL time.Duration

	LogFormat string
	LogLevel  string
	DrainTime time.Duration // after SIGTERM requests may go on for so long
	Ports     Ports
}

// Channel is one way to the control plane.
type Channel struct {
	Address string
	Roots   string // a file, PEM text, or "SYSTEM"
	AltName string // accepted in the certificate beside the address's host
}

// Ports are where a waypoint listens.
type Ports struct{ HBONE, Admin, Metrics, Ready uint16 }

// Identity is the waypoint's own.
func (c Config) Identity() mesh.Identity {
	return mesh.Identity{TrustDomain: c.TrustDomain, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
}

const (
	defaultAddress = "https://istiod.istio-system.svc:15012"
	defaultRoots   = "./var/run/secrets/istio/root-cert.pem"
	defaultToken   = "./var/run/secrets/tokens/istio-token"
)

// environment is "NAME=value" pairs and the mistakes found in them.
type environment struct {
	vars map[string]string
	errs []error
}

func (e *environment) text(name, fallback string) string {
	if v := e.vars[name]; v != "" {
		return v
	}
	return fallback
}

func (e *environment) required(name string) string {
	v := e.vars[name]
	if v == "" {
		e.fail(name, "is required")
	}
	return v
}

func (e *environment) fail(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
}

// ParseConfig reads a Config from "NAME=value" pairs. Every mistake is reported,
// each with its variable's name.
func ParseConfig(environ []string) (Config, error) {
	e := &environment{vars: make(map[string]string, len(environ))}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		e.vars[name] = value
	}
	c := Config{
		PodName:        e.required("POD_NAME"),
		Namespace:      e.required("POD_NAMESPACE"),
		ServiceAccount: e.required("SERVICE_ACCOUNT"),
		NodeName:       e.text("NODE_NAME", ""),
		Cluster:        mesh.Cluster(e.text("CLUSTER_ID", string(mesh.DefaultCluster))),
		Network:        mesh.Network(e.text("NETWORK", "")),
		TrustDomain:    e.text("TRUST_DOMAIN", mesh.DefaultTrustDomain),
		Domain:         e.text("CLUSTER_DOMAIN", mesh.DefaultClusterDomain),
		Token:          e.text("AUTH_TOKEN", defaultToken),
		LogFormat:      e.text("LOG_FORMAT", "plain"),
		LogLevel:       e.text("LOG_LEVEL", "info"),
		DrainTime:      e.drainTime(),
		SecretTTL:      24 * time.Hour,
		Ports: Ports{
			HBONE:   e.port("HBONE_PORT", mesh.PortHBONE),
			Admin:   e.port("ADMIN_PORT", mesh.PortAdmin),
			Metrics: e.port("METRICS_PORT", mesh.PortMetrics),
			Ready:   e.port("READY_PORT", mesh.PortReady),
		},
	}
	c.Gateway = e.text("GATEWAY_NAME", c.ServiceAccount)
	c.XDS = e.channel("XDS", defaultAddress)
	c.CA = e.channel("CA", c.XDS.Address)
	c.readInstanceIP(e)
	return c, errors.Join(e.errs...)
}

func (c *Config) readInstanceIP(e *environment) {
	addr, err := netip.ParseAddr(e.required("INSTANCE_IP"))
	if err != nil && e.vars["INSTANCE_IP"] != "" {
		e.fail("INSTANCE_IP", "%q is no IP address", e.vars["INSTANCE_IP"])
	}
	c.InstanceIP = addr.Unmap()
}

// channel reads an address and the roots that belong to it. An address without a
// scheme is https.
func (e *environment) channel(prefix, fallback string) Channel {
	name := prefix + "_ADDRESS"
	v := e.text(name, fallback)
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	u, err := url.Parse(v)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		e.fail(name, "%q is no http or https address", v)
	}
	return Channel{Address: v, Roots: e.text(prefix+"_ROOT_CA", defaultRoots), AltName: e.text("ALT_"+prefix+"_HOSTNAME", "")}
}

func (e *environment) port(name string, fallback uint16) uint16 {
	v := e.vars[name]
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		e.fail(name, "%q is no port", v)
	}
	return uint16(n)
}

// drainTime leaves the process a little of the pod's grace period to end in.
func (e *environment) drainTime() time.Duration {
	v := e.text("TERMINATION_GRACE_PERIOD_SECONDS", "30")
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		e.fail("TERMINATION_GRACE_PERIOD_SECONDS", "%q is no number of seconds", v)
	}
	grace := time.Duration(n) * time.Second
	if grace > 10*time.Second {
		return grace - 5*time.Second
	}
	return max(grace-time.Second, time.Second)
}

// isFile reports whether a setting names a file and is not the thing itself.
func isFile(v string) bool {
	_, err := os.Stat(v)
	return err == nil
}
