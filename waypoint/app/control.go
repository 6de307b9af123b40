package app

import (
	"fmt"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
	waypointxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

func (a *App) buildCerts() (err error) {
	a.ca, err = caclient.New(caclient.Config{
		Address:     a.cfg.CA.Address,
		Roots:       a.cfg.CA.Pool,
		AltHostname: a.cfg.CA.AltName,
		Token:       a.cfg.Token.Read,
		ClusterID:   string(a.cfg.Cluster),
		Headers:     a.cfg.CA.Headers,
		TTL:         a.cfg.SecretTTL,
	})
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	a.certs = certs.NewCache(a.ca, certs.CacheConfig{
		Log:    logging.Scope(a.log, "certs"),
		Issued: metrics.NewCertificates(a.registry).Issued,
	})
	metrics.CertificateExpiry(a.registry, a.certs.Expirations)
	return nil
}

func (a *App) buildXDS() (err error) {
	a.decoder = waypointxds.NewDecoder(a.store)
	c := a.cfg
	a.xds, err = xds.NewClient(xds.Config{
		Address:      c.XDS.Address,
		AltHostname:  c.XDS.AltName,
		Roots:        c.XDS.Pool,
		NodeID:       xds.NodeID("waypoint", c.InstanceIP, c.PodName, c.Namespace, c.Domain),
		NodeMetadata: nodeMetadata(c),
		Token:        c.Token.Read,
		ClusterID:    string(c.Cluster),
		Headers:      c.XDS.Headers,
		Types:        a.subscriptions(),
		Log:          logging.Scope(a.log, "xds"),
		Metrics:      metrics.NewXDS(a.registry),
	})
	if err != nil {
		return fmt.Errorf("XDS_ADDRESS: %w", err)
	}
	return nil
}

// subscriptions are the types in the order in which they are asked for; each
// notes whether something was rejected.
func (a *App) subscriptions() []xds.Subscription {
	types := append([]xds.Subscription{discovery.Addresses(a.known)}, a.decoder.Subscriptions()...)
	for i := range types {
		handle := types[i].Handle
		types[i].Handle = func(added []xds.Resource, removed []string) []xds.Rejected {
			rejected := handle(added, removed)
			if len(rejected) > 0 {
				a.rejected.Store(true)
			}
			return rejected
		}
	}
	return types
}

// nodeMetadata introduces the waypoint and tells what it implements.
func nodeMetadata(c Config) map[string]any {
	features := []any{}
	for _, f := range waypointxds.Features() {
		features = append(features, f)
	}
	return map[string]any{
		"GATEWAY_NAME":    c.Gateway,
		"NAME":            c.PodName,
		"NAMESPACE":       c.Namespace,
		"SERVICE_ACCOUNT": c.ServiceAccount,
		"NODE_NAME":       c.NodeName,
		"NETWORK":         string(c.Network),
		"CLUSTER_ID":      string(c.Cluster),
		"INSTANCE_IPS":    c.InstanceIP.String(),
		"FEATURES":        features,
	}
}
