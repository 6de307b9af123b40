package localxds

import (
	"fmt"
	"net/netip"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// The words of the file, and what they mean.

func modes() map[string]mesh.BalanceMode {
	return map[string]mesh.BalanceMode{
		"Standard": mesh.BalanceStandard, "Strict": mesh.BalanceStrict,
		"Failover": mesh.BalanceFailover, "Passthrough": mesh.BalancePassthrough,
	}
}

func healthPolicies() map[string]bool {
	return map[string]bool{"OnlyHealthy": false, "AllowAll": true}
}

func scopes() map[string]mesh.LocalityScope {
	return map[string]mesh.LocalityScope{
		"Region": mesh.ScopeRegion, "Zone": mesh.ScopeZone, "Subzone": mesh.ScopeSubzone,
		"Node": mesh.ScopeNode, "Cluster": mesh.ScopeCluster, "Network": mesh.ScopeNetwork,
	}
}

func families() map[string]mesh.IPFamilies {
	return map[string]mesh.IPFamilies{"Dual": mesh.IPDual, "IPv4": mesh.IPv4Only, "IPv6": mesh.IPv6Only}
}

func visibilities() map[string]bool {
	return map[string]bool{"Public": false, "Namespace": true}
}

func service(n *yaml.Node) (*mesh.Service, error) {
	f, err := open(n, []string{"name", "namespace", "hostname", "vips", "ports"},
		"cidrVips", "endpoints", "subjectAltNames", "waypoint", "weightedWaypoints", "loadBalancer",
		"ipFamilies", "canonical", "visibility")
	if err != nil {
		return nil, err
	}
	s := &mesh.Service{}
	f.get("name", &s.Name)
	f.get("namespace", &s.Namespace)
	f.get("hostname", &s.Hostname)
	f.get("subjectAltNames", &s.SubjectAltNames)
	f.get("canonical", &s.Canonical)
	enum(f, "ipFamilies", &s.IPFamilies, families())
	enum(f, "visibility", &s.NamespaceOnly, visibilities())
	sub(f, "ports", &s.Ports, ports)
	sub(f, "waypoint", &s.Waypoint, gateway)
	sub(f, "loadBalancer", &s.LoadBalancing, loadBalancer)
	s.VIPs = all(f, "vips", netAddress)
	s.CIDRs = all(f, "cidrVips", cidr)
	s.WeightedWaypoints = all(f, "weightedWaypoints", weighted)
	if f.err == nil && f.has("endpoints") && len(resolve(f.by["endpoints"]).Content) > 0 {
		f.fail("endpoints", "not supported here, write the service under services of the workload")
	}
	return s, f.err
}

func cidr(n *yaml.Node) (p mesh.NetPrefix, err error) {
	f, err := open(n, []string{"network", "cidr"})
	if err != nil {
		return p, err
	}
	var text string
	f.get("network", &p.Network)
	f.get("cidr", &text)
	if f.err != nil {
		return p, f.err
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		f.fail("cidr", "%w", err)
	}
	p.Prefix = prefix.Masked()
	return p, f.err
}

// weighted decodes {destination: {destination, hboneMtlsPort}, weight}.
func weighted(n *yaml.Node) (w mesh.WeightedGateway, err error) {
	f, err := open(n, []string{"destination", "weight"})
	if err != nil {
		return w, err
	}
	var g *mesh.Gateway
	sub(f, "destination", &g, gateway)
	f.get("weight", &w.Weight)
	if f.err != nil {
		return w, f.err
	}
	if g == nil {
		return w, fmt.Errorf("line %d: destination: empty", n.Line)
	}
	w.Gateway = *g
	return w, nil
}

func loadBalancer(n *yaml.Node) (*mesh.LoadBalancing, error) {
	f, err := open(n, []string{"routingPreferences", "mode", "healthPolicy"})
	if err != nil {
		return nil, err
	}
	l := &mesh.LoadBalancing{}
	l.Preferences = all(f, "routingPreferences", scope)
	enum(f, "mode", &l.Mode, modes())
	enum(f, "healthPolicy", &l.AllowAll, healthPolicies())
	return l, f.err
}

func scope(n *yaml.Node) (mesh.LocalityScope, error) {
	s, ok := scopes()[resolve(n).Value]
	if !ok {
		return 0, fmt.Errorf("line %d: unknown value %q", n.Line, n.Value)
	}
	return s, nil
}
