package app

import (
	"flag"
	"fmt"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/controlplane/gateway"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// GatewayConfig says whether and how Gateways become waypoints, with Kube.
type GatewayConfig struct {
	Deploy   bool
	Image    string // of the waypoints
	Address  string // where waypoints reach xDS and the certificate authority; "" = the installed Service
	Revision string // whose Gateways are ours
}

// flags defines what a command line may say of it.
func (c *GatewayConfig) flags(fs *flag.FlagSet) {
	fs.BoolVar(&c.Deploy, "gateway-controller", true, "make waypoints of Gateways, with --kube")
	fs.StringVar(&c.Image, "waypoint-image", "culvert.local/waypoint:0.1.0", "`image` of waypoints")
	fs.StringVar(&c.Address, "waypoint-xds-address", "", "`URL` at which waypoints reach the control plane; default: the Service culvert-controlplane")
	fs.StringVar(&c.Revision, "revision", "default", "`revision` of this control plane: it makes waypoints of Gateways with that istio.io/rev")
}

// minDrain is how long a waypoint's pod that is deleted takes new tunnels: the time in
// which every ztunnel hears of its successor, with much to spare. It is a part of the
// pod's grace period.
const minDrain = "5s"

// Rates of the gateway controller's own requests.
const (
	gatewayQPS   = 50
	gatewayBurst = 100
)

// buildGateways adds the gateway controller to what the leader runs.
func (a *App) buildGateways() error {
	if a.kube == nil || !a.cfg.Gateways.Deploy {
		return nil
	}
	config := rest.CopyConfig(a.kube)
	config.RateLimiter, config.QPS, config.Burst = nil, gatewayQPS, gatewayBurst
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	bare, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	c := gateway.New(gateway.Config{
		Client: client, Metadata: bare, Options: a.gatewayOptions(),
		Log: logging.Scope(a.log, "gateway"), Metrics: a.registry,
	})
	a.led = append(a.led, led{"gateway controller", c.Run})
	return nil
}

func (a *App) gatewayOptions() gateway.Options {
	m := a.cfg.Mesh.WithDefaults()
	address := a.cfg.Gateways.Address
	if address == "" {
		address = fmt.Sprintf("https://culvert-controlplane.%s.svc:%d", a.cfg.Namespace, mesh.PortXDS)
	}
	return gateway.Options{
		Image: a.cfg.Gateways.Image, XDSAddress: address, CAAddress: a.cfg.CAAddress, Revision: a.cfg.Gateways.Revision,
		Domain: m.ClusterDomain, TrustDomain: m.TrustDomain, Cluster: string(m.Cluster), Network: string(m.Network),
		RootNamespace: m.RootNamespace,
		LogFormat:     a.cfg.LogFormat, // the mesh's logs are read together
		MinDrain:      minDrain,
	}
}
