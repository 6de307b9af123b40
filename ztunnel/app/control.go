package app

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

func (a *App) buildCerts() error {
	issuer, err := a.issuer()
	if err != nil {
		return err
	}
	a.certs = certs.NewCache(issuer, certs.CacheConfig{Log: logging.Scope(a.log, "certs")})
	a.prefetch = newPrefetch(a.store, a.certs, a.cfg.NodeName)
	return nil
}

func (a *App) issuer() (certs.Issuer, error) {
	c := a.cfg
	if c.FakeCA {
		return selfsigned.Fixed(selfsigned.WithTTL(c.SecretTTL), selfsigned.WithLog(logging.Scope(a.log, "certs"))), nil
	}
	client, err := caclient.New(caclient.Config{
		Address:     c.CA.Address,
		Roots:       c.CA.Roots.pool,
		AltHostname: c.CA.AltName,
		Token:       c.Token.read,
		ClusterID:   string(c.Cluster),
		Headers:     c.CA.Headers,
		TTL:         c.SecretTTL,
		Impersonate: true,
	})
	if err != nil {
		return nil, fmt.Errorf("CA_ADDRESS: %w", err)
	}
	a.closeCA = client.Close
	return client, nil
}

// pool returns the roots as they are now.
func (r RootSource) pool() (*x509.CertPool, error) {
	switch {
	case r.System:
		return x509.SystemCertPool()
	case r.PEM != nil:
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(r.PEM) {
			return nil, errors.New("no certificate in the literal PEM")
		}
		return pool, nil
	}
	return certs.LoadRoots(r.Path)
}

// read returns the token as it is now; "" sends none.
func (t TokenSource) read() (string, error) {
	if t.Path == "" {
		return t.Literal, nil
	}
	return token.FileSource(t.Path)()
}

// loadLocal reads the workloads that are told by file or by variable. They stay,
// beside what the control plane tells.
func (a *App) loadLocal() error {
	text := []byte(a.cfg.LocalXDS)
	name := "LOCAL_XDS"
	if a.cfg.LocalXDSPath != "" {
		name = a.cfg.LocalXDSPath
		var err error
		if text, err = os.ReadFile(name); err != nil {
			return fmt.Errorf("LOCAL_XDS_PATH: %w", err)
		}
	}
	if len(text) > 0 {
		known, services, policies, err := localxds.Parse(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		a.store.Apply(workloads.Update{Workloads: known, Services: services, Policies: policies})
	}
	if a.cfg.XDS.Address == "" {
		a.learned()
	}
	return nil
}

func (a *App) buildXDS() (err error) {
	c := a.cfg
	if c.XDS.Address == "" {
		return nil
	}
	var headers []xds.Header
	for _, name := range slices.Sorted(maps.Keys(c.XDS.Headers)) {
		headers = append(headers, xds.Header{Name: name, Value: c.XDS.Headers[name]})
	}
	a.xds, err = xds.NewClient(xds.Config{
		Address:      c.XDS.Address,
		AltHostname:  c.XDS.AltName,
		Roots:        c.XDS.Roots.pool,
		NodeID:       nodeID(c),
		NodeMetadata: nodeMetadata(c),
		Token:        c.Token.read,
		ClusterID:    string(c.Cluster),
		Headers:      headers,
		Types: []xds.Subscription{
			{TypeURL: workload.TypeURL, Wildcard: true, Handle: a.applyAddresses},
			{TypeURL: authz.TypeURL, Wildcard: true, Handle: a.applyPolicies},
		},
		Log:     logging.Scope(a.log, "xds"),
		Metrics: newXDSMetrics(a.registry),
	})
	if err != nil {
		return fmt.Errorf("XDS_ADDRESS: %w", err)
	}
	return nil
}

func nodeID(c Config) string {
	return fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.%s", c.InstanceIP, c.PodName, c.PodNamespace, c.PodNamespace, c.ClusterDomain)
}

func nodeMetadata(c Config) map[string]any {
	m := map[string]any{}
	for k, v := range c.Metadata {
		m[k] = v
	}
	m["NAME"] = c.PodName
	m["NAMESPACE"] = c.PodNamespace
	m["INSTANCE_IPS"] = c.InstanceIP.String()
	m["NODE_NAME"] = c.NodeName
	if c.ServiceAccount != "" {
		m["SERVICE_ACCOUNT"] = c.ServiceAccount
	}
	return m
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
	a.store.Apply(update)
	return rejected
}

func decodeAddress(r xds.Resource) (*mesh.Workload, *mesh.Service, error) {
	var m workload.Address
	if err := proto.Unmarshal(r.Body.GetValue(), &m); err != nil {
		return nil, nil, err
	}
	return workload.ToMesh(&m)
}

// applyPolicies takes one response's policies.
func (a *App) applyPolicies(added []xds.Resource, removed []string) []xds.Rejected {
	var update workloads.Update
	var rejected []xds.Rejected
	for _, r := range added {
		var m authz.Authorization
		err := proto.Unmarshal(r.Body.GetValue(), &m)
		var p *mesh.Policy
		if err == nil {
			p, err = authz.ToMesh(&m)
		}
		if err != nil {
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
			continue
		}
		update.Policies = append(update.Policies, p)
	}
	for _, name := range removed {
		if n, err := mesh.ParsePolicyName(name); err == nil {
			update.RemovedPolicies = append(update.RemovedPolicies, n)
		}
	}
	a.store.Apply(update)
	return rejected
}

// scopes turns a RUST_LOG filter into one of ours: of a Rust path such as
// "ztunnel::access" its last part is the scope, and the program itself stands for
// everything.
func scopes(filter string) string {
	parts := strings.Split(filter, ",")
	for i, p := range parts {
		target, level, ok := strings.Cut(strings.TrimSpace(p), "=")
		if !ok {
			parts[i] = target
			continue
		}
		if j := strings.LastIndex(target, "::"); j >= 0 {
			target = target[j+2:]
		}
		if parts[i] = target + "=" + level; target == "ztunnel" {
			parts[i] = level
		}
	}
	return strings.Join(parts, ",")
}

// rustLevels lets the admin port take filters as upstream's does.
type rustLevels struct{ *logging.Levels }

// Set applies a filter on top of the present levels.
func (l rustLevels) Set(filter string) error { return l.Levels.Set(scopes(filter)) }
