package workload

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/pkg/wire/wiretest"
)

func raw(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func extension() []*Extension {
	return []*Extension{{Name: "x", Config: &anypb.Any{TypeUrl: "t/y", Value: []byte{1, 2}}}}
}

func byHost(namespace, hostname string, port uint32) *GatewayAddress {
	return &GatewayAddress{
		Destination:   &GatewayAddress_Hostname{Hostname: &NamespacedHostname{Namespace: namespace, Hostname: hostname}},
		HboneMtlsPort: port,
	}
}

func fullWorkload() *Workload {
	return &Workload{
		Uid: "east//Pod/shop/cart-1", Name: "cart-1", Namespace: "shop",
		Addresses: [][]byte{raw("10.1.2.3"), raw("fd00::1")}, Hostname: "cart.example", Network: "net-1",
		TunnelProtocol: TunnelProtocol_HBONE, TrustDomain: "td.example", ServiceAccount: "cart",
		Waypoint: byHost("infra", "wp.infra", 15008),
		NetworkGateway: &GatewayAddress{
			Destination:   &GatewayAddress_Address{Address: &NetworkAddress{Network: "net-2", Address: raw("172.16.0.9")}},
			HboneMtlsPort: 15009,
		},
		Node: "node-1", CanonicalName: "cart", CanonicalRevision: "v2", WorkloadType: WorkloadType_POD,
		WorkloadName: "cart-dep", NativeTunnel: true,
		ApplicationTunnel: &ApplicationTunnel{Protocol: ApplicationTunnel_PROXY, Port: 15088},
		Services: map[string]*PortList{
			"shop/cart.shop.svc": {Ports: []*Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: AppProtocol_HTTP11}}},
		},
		AuthorizationPolicies: []string{"shop/only-front"}, Status: WorkloadStatus_UNHEALTHY, ClusterId: "east",
		Locality:    &Locality{Region: "r", Zone: "z", Subzone: "sz"},
		NetworkMode: NetworkMode_HOST_NETWORK, Extensions: extension(), Capacity: wrapperspb.UInt32(3),
	}
}

func fullService() *Service {
	return &Service{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc",
		Addresses: []*NetworkAddress{
			{Network: "net-1", Address: raw("10.96.0.7")},
			{Network: "net-1", Address: raw("10.97.0.0"), Length: proto.Uint32(16)},
		},
		Ports:           []*Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: AppProtocol_HTTP2}},
		SubjectAltNames: []string{"spiffe://td/ns/shop/sa/cart"},
		Waypoint:        byHost("shop", "wp", 15008),
		LoadBalancing: &LoadBalancing{
			RoutingPreference: []LoadBalancing_Scope{LoadBalancing_NETWORK, LoadBalancing_REGION, LoadBalancing_ZONE},
			Mode:              LoadBalancing_FAILOVER, HealthPolicy: LoadBalancing_ALLOW_ALL,
		},
		IpFamilies: IPFamilies_DUAL, Extensions: extension(), Canonical: true, IngressUseWaypoint: true,
		WeightedWaypoints: []*WeightedWaypoint{{Destination: byHost("shop", "wp-canary", 0), Weight: 10}},
		Visibility:        Service_NAMESPACE,
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	w := &Address{Type: &Address_Workload{Workload: fullWorkload()}}
	s := &Address{Type: &Address_Service{Service: fullService()}}
	wiretest.Golden(t, "testdata/address_workload.hex", w)
	wiretest.Golden(t, "testdata/address_service.hex", s)
	wiretest.Golden(t, "testdata/workload_minimal.hex", &Workload{Uid: "u"})
	wiretest.Covers(t, File_pkg_wire_workload_workload_proto, w, s)
}
