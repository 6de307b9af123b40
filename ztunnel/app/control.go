package app

import (
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/wire/localxds"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

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
	addresses := discovery.Addresses(a.store)
	if c.OnDemand {
		a.demand = discovery.NewDemand(a.store)
		addresses = a.demand.Addresses()
	}
	a.xds, err = xds.NewClient(xds.Config{
		Address:      c.XDS.Address,
		AltHostname:  c.XDS.AltName,
		TLS:          a.tls,
		Roots:        c.XDS.Pool,
		NodeID:       xds.NodeID("ztunnel", c.InstanceIP, c.PodName, c.PodNamespace, c.ClusterDomain),
		NodeMetadata: nodeMetadata(c),
		Token:        c.Token.Read,
		ClusterID:    string(c.Cluster),
		Headers:      c.XDS.Headers,
		Types:        []xds.Subscription{addresses, discovery.Policies(a.store, a.malformedAddresses())},
		Log:          logging.Scope(a.log, "xds"),
		Metrics:      metrics.NewXDS(a.registry),
		Applied:      a.applied,
	})
	if err != nil {
		return fmt.Errorf("XDS_ADDRESS: %w", err)
	}
	metrics.KnowledgeAge(a.registry, a.xds.Heard)
	if a.demand != nil {
		a.demand.Attach(a.xds)
	}
	return nil
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

// malformedAddresses returns what is done about addresses of policies that are none.
// They are left out, as every implementation does, but not silently: the policy
// means less than it says.
func (a *App) malformedAddresses() func(mesh.PolicyName, []string) {
	total := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "culvert_ztunnel_malformed_policy_addresses_total",
		Help: "Addresses in policies that are no address range and were left out.",
	})
	a.registry.MustRegister(total)
	log := logging.Scope(a.log, "policy")
	return func(name mesh.PolicyName, addresses []string) {
		total.Add(float64(len(addresses)))
		log.Warn("addresses of a policy are malformed and left out", "policy", name, "addresses", addresses)
	}
}
