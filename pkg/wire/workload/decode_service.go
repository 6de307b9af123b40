package workload

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// ToService converts a service that came from the wire.
func ToService(s *Service) (out *mesh.Service, err error) {
	out = &mesh.Service{
		Name:            s.GetName(),
		Namespace:       s.GetNamespace(),
		Hostname:        s.GetHostname(),
		SubjectAltNames: slices.Clone(s.GetSubjectAltNames()),
		Canonical:       s.GetCanonical(),
		IngressWaypoint: s.GetIngressUseWaypoint(),
		NamespaceOnly:   s.GetVisibility() == Service_NAMESPACE, // an unknown number is PUBLIC
	}
	if out.Hostname == "" {
		return nil, fmt.Errorf("hostname: empty")
	}
	for i, a := range s.GetAddresses() {
		if err := addVIP(out, a); err != nil {
			return nil, fmt.Errorf("addresses[%d].%w", i, err)
		}
	}
	if out.Ports, err = toPorts(s.GetPorts()); err != nil {
		return nil, err
	}
	if out.Waypoint, err = toGateway(s.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint.%w", err)
	}
	for i, w := range s.GetWeightedWaypoints() {
		dest := w.GetDestination()
		if dest == nil {
			return nil, fmt.Errorf("weighted_waypoints[%d].destination: not set", i)
		}
		g, err := toGateway(dest)
		if err != nil {
			return nil, fmt.Errorf("weighted_waypoints[%d].destination.%w", i, err)
		}
		out.WeightedWaypoints = append(out.WeightedWaypoints, mesh.WeightedGateway{Gateway: *g, Weight: w.GetWeight()})
	}
	if out.LoadBalancing, err = toLoadBalancing(s.GetLoadBalancing()); err != nil {
		return nil, fmt.Errorf("load_balancing.%w", err)
	}
	out.IPFamilies, err = toIPFamilies(s.GetIpFamilies())
	return out, err
}

// addVIP adds a virtual address, or a range of them when its length says so.
func addVIP(s *mesh.Service, a *NetworkAddress) error {
	addr, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok {
		return fmt.Errorf("address: %d bytes, want 4 or 16", len(a.GetAddress()))
	}
	network, bits := mesh.Network(a.GetNetwork()), addr.BitLen()
	if a.Length != nil {
		if a.GetLength() > uint32(bits) {
			return fmt.Errorf("length: %d is more than the address has bits, %d", a.GetLength(), bits)
		}
		bits = int(a.GetLength())
	}
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	if bits == addr.BitLen() {
		s.VIPs = append(s.VIPs, mesh.NetAddr{Network: network, Addr: addr})
		return nil
	}
	s.CIDRs = append(s.CIDRs, mesh.NetPrefix{Network: network, Prefix: netip.PrefixFrom(addr, bits).Masked()})
	return nil
}

func toLoadBalancing(l *LoadBalancing) (*mesh.LoadBalancing, error) {
	if l == nil {
		return nil, nil
	}
	out := &mesh.LoadBalancing{}
	for i, s := range l.GetRoutingPreference() {
		if s == LoadBalancing_UNSPECIFIED_SCOPE {
			return nil, fmt.Errorf("routing_preference[%d]: UNSPECIFIED_SCOPE", i)
		}
		if s < LoadBalancing_REGION || s > LoadBalancing_NETWORK {
			return nil, fmt.Errorf("routing_preference[%d]: unknown value %d", i, s)
		}
		out.Preferences = append(out.Preferences, mesh.LocalityScope(s))
	}
	switch l.GetMode() {
	case LoadBalancing_UNSPECIFIED_MODE:
		out.Mode = mesh.BalanceStandard
	case LoadBalancing_STRICT:
		out.Mode = mesh.BalanceStrict
	case LoadBalancing_FAILOVER:
		out.Mode = mesh.BalanceFailover
	case LoadBalancing_PASSTHROUGH:
		out.Mode = mesh.BalancePassthrough
	default:
		return nil, fmt.Errorf("mode: unknown value %d", l.GetMode())
	}
	switch l.GetHealthPolicy() {
	case LoadBalancing_ONLY_HEALTHY:
	case LoadBalancing_ALLOW_ALL:
		out.AllowAll = true
	default:
		return nil, fmt.Errorf("health_policy: unknown value %d", l.GetHealthPolicy())
	}
	return out, nil
}

func toIPFamilies(f IPFamilies) (mesh.IPFamilies, error) {
	if f < IPFamilies_AUTOMATIC || f > IPFamilies_DUAL {
		return 0, fmt.Errorf("ip_families: unknown value %d", f)
	}
	return mesh.IPFamilies(f), nil
}
