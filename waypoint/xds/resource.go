package xds

import (
	"errors"
	"fmt"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	"github.com/culvert-mesh/culvert/waypoint/config"
)

func decodeDestination(m *waypointpb.Destination) (*config.Destination, error) {
	switch k := m.GetKind().(type) {
	case *waypointpb.Destination_Service:
		d, err := decodeService(k.Service)
		return d, at("service", err)
	case *waypointpb.Destination_Workload:
		d, err := decodeWorkload(k.Workload)
		return d, at("workload", err)
	}
	return nil, errors.New("kind: required")
}

func decodeService(m *waypointpb.Service) (*config.Destination, error) {
	d := &config.Destination{
		Service: mesh.ServiceName{Namespace: m.GetNamespace(), Hostname: m.GetHostname()},
		Port:    uint16(m.GetPort()),
		Routes:  m.GetRouteConfig(),
		Cluster: m.GetCluster(),
	}
	if m.GetHostname() == "" {
		return nil, errors.New("hostname: required")
	}
	if m.GetPort() == 0 || m.GetPort() > 65535 {
		return nil, fmt.Errorf("port: %d is not a port", m.GetPort())
	}
	switch m.GetProtocol() {
	case waypointpb.Protocol_AUTO:
	case waypointpb.Protocol_HTTP:
		d.Protocol = config.HTTP
	case waypointpb.Protocol_TCP:
		d.Protocol = config.TCP
	default:
		return nil, fmt.Errorf("protocol: %v is not supported", m.GetProtocol())
	}
	if d.Cluster == "" && (d.Protocol != config.HTTP || d.Routes == "") {
		return nil, errors.New("cluster: required")
	}
	for _, t := range m.GetRouteTables() {
		d.Tables = append(d.Tables, config.SourceTable{Namespaces: t.GetSourceNamespaces(), Routes: t.GetRouteConfig()})
	}
	return d, decodeServed(m, d)
}

func decodeWorkload(m *waypointpb.Workload) (*config.Destination, error) {
	d := &config.Destination{UID: mesh.UID(m.GetUid())}
	if d.UID == "" {
		return nil, errors.New("uid: required")
	}
	return d, decodeServed(m, d)
}

// served is what services and workloads have in common.
type served interface {
	GetAddresses() []*waypointpb.NetworkAddress
	GetHttpFilters() []*anypb.Any
	GetNetworkFilters() []*anypb.Any
}

func decodeServed(m served, d *config.Destination) (err error) {
	if d.Addresses, err = decodeAddresses(m.GetAddresses()); err != nil {
		return err
	}
	if d.HTTPFilters, err = decodeHTTPFilters(m.GetHttpFilters()); err != nil {
		return err
	}
	d.NetworkFilters, err = decodeNetworkFilters(m.GetNetworkFilters())
	return err
}

func decodeAddresses(list []*waypointpb.NetworkAddress) (out []mesh.NetAddr, err error) {
	for i, a := range list {
		addr, ok := netip.AddrFromSlice(a.GetAddress())
		if !ok {
			return nil, fmt.Errorf("addresses[%d].address: %d bytes, want 4 or 16", i, len(a.GetAddress()))
		}
		out = append(out, mesh.NetAddr{Network: mesh.Network(a.GetNetwork()), Addr: addr.Unmap()})
	}
	return out, nil
}

// metadataKey is where our control plane says which service a cluster stands for.
const metadataKey = "culvert"

func decodeCluster(m *clusterv3.Cluster) (*config.Cluster, error) {
	fields := m.GetMetadata().GetFilterMetadata()[metadataKey].GetFields()
	c := &config.Cluster{
		Name:           m.GetName(),
		ConnectTimeout: m.GetConnectTimeout().AsDuration(),
		Service: mesh.ServiceName{
			Namespace: fields["namespace"].GetStringValue(),
			Hostname:  fields["hostname"].GetStringValue(),
		},
	}
	port := fields["port"].GetNumberValue()
	const path = "metadata.filter_metadata[" + metadataKey + "]"
	switch {
	case c.Service.Hostname == "":
		return nil, errors.New(path + ".hostname: required")
	case port < 1 || port > 65535 || port != float64(uint16(port)):
		return nil, fmt.Errorf("%s.port: %v is not a port", path, port)
	}
	c.Port = uint16(port)
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		c.Balance = config.RoundRobin
	case clusterv3.Cluster_LEAST_REQUEST:
		c.Balance = config.LeastRequest
	case clusterv3.Cluster_RANDOM:
		c.Balance = config.Random
	default:
		return nil, fmt.Errorf("lb_policy: %v is not supported", m.GetLbPolicy())
	}
	if t := m.GetType(); m.GetClusterDiscoveryType() != nil && t != clusterv3.Cluster_EDS {
		return nil, fmt.Errorf("type: %v is not supported", t)
	}
	return c, nil
}
