package waypoint

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/wire/wiretest"
)

func TestGolden(t *testing.T) {
	t.Parallel()
	filters := []*anypb.Any{{TypeUrl: "t/f", Value: []byte{1}}}
	addresses := []*NetworkAddress{{Network: "net-1", Address: []byte{10, 96, 0, 7}}}
	service := &Destination{Kind: &Destination_Service{Service: &Service{
		Namespace: "shop", Hostname: "cart.shop.svc", Port: 80, Addresses: addresses, Protocol: Protocol_HTTP,
		RouteConfig: ServiceResource("shop", "cart.shop.svc", 80), Cluster: "outbound|80||cart.shop.svc",
		HttpFilters: filters, NetworkFilters: filters,
		RouteTables: []*RouteTable{{SourceNamespaces: []string{"front"}, RouteConfig: "front/cart"}},
	}}}
	workload := &Destination{Kind: &Destination_Workload{Workload: &Workload{
		Uid: "u", Addresses: addresses, HttpFilters: filters, NetworkFilters: filters,
	}}}
	wiretest.Golden(t, "testdata/destination_service.hex", service)
	wiretest.Golden(t, "testdata/destination_workload.hex", workload)
	wiretest.Covers(t, File_pkg_wire_waypoint_waypoint_proto, service, workload)
}
