package app

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
	waypointxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

func (a *App) buildCerts() (err error) {
	a.ca, err = caclient.New(caclient.Config{
		Address:     a.cfg.CA.Address,
		Roots:       a.cfg.CA.pool,
		AltHostname: a.cfg.CA.AltName,
		Token:       a.token,
		ClusterID:   string(a.cfg.Cluster),
		TTL:         a.cfg.SecretTTL,
	})
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	a.certs = certs.NewCache(a.ca, certs.CacheConfig{Log: logging.Scope(a.log, "certs")})
	return nil
}

// pool returns the channel's roots as they are now.
func (c Channel) pool() (*x509.CertPool, error) {
	switch {
	case c.Roots == "SYSTEM":
		return x509.SystemCertPool()
	case strings.Contains(c.Roots, "-----BEGIN CERTIFICATE-----"):
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(c.Roots)) {
			return nil, errors.New("no certificate in the literal PEM")
		}
		return pool, nil
	}
	return certs.LoadRoots(c.Roots)
}

// token returns the service account's token as it is now.
func (a *App) token() (string, error) {
	if isFile(a.cfg.Token) || a.cfg.Token == defaultToken {
		return token.FileSource(a.cfg.Token)()
	}
	return a.cfg.Token, nil
}

func (a *App) buildXDS() (err error) {
	a.decoder = waypointxds.NewDecoder(a.store)
	c := a.cfg
	a.xds, err = xds.NewClient(xds.Config{
		Address:      c.XDS.Address,
		AltHostname:  c.XDS.AltName,
		Roots:        c.XDS.pool,
		NodeID:       fmt.Sprintf("waypoint~%s~%s.%s~%s.svc.%s", c.InstanceIP, c.PodName, c.Namespace, c.Namespace, c.Domain),
		NodeMetadata: nodeMetadata(c),
		Token:        a.token,
		ClusterID:    string(c.Cluster),
		Types:        a.subscriptions(),
		Log:          logging.Scope(a.log, "xds"),
		Metrics:      newXDSMetrics(a.registry),
	})
	if err != nil {
		return fmt.Errorf("XDS_ADDRESS: %w", err)
	}
	return nil
}

// subscriptions are the types in the order in which they are asked for; each
// notes whether something was rejected.
func (a *App) subscriptions() []xds.Subscription {
	types := append([]xds.Subscription{{TypeURL: workload.TypeURL, Wildcard: true, Handle: a.applyAddresses}}, a.decoder.Subscriptions()...)
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

// applyAddresses takes one response's workloads and services.
func (a *App) applyAddresses(added []xds.Resource, removed []string) []xds.Rejected {
	update := workloads.Update{Removed: removed}
	var rejected []xds.Rejected
	for _, r := range added {
		w, svc, err := decodeAddress(r)
		switch {
		case err != nil:
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
		case w != nil:
			update.Workloads = append(update.Workloads, w)
		default:
			update.Services = append(update.Services, svc)
		}
	}
	a.known.Apply(update)
	return rejected
}

func decodeAddress(r xds.Resource) (*mesh.Workload, *mesh.Service, error) {
	var m workload.Address
	if err := proto.Unmarshal(r.Body.GetValue(), &m); err != nil {
		return nil, nil, err
	}
	return workload.ToMesh(&m)
}
