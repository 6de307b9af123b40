package workload

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func TestToMeshFull(t *testing.T) {
	t.Parallel()
	w, err := ToWorkload(fullWorkload())
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Workload{
		UID: "east//Pod/shop/cart-1", Name: "cart-1", Namespace: "shop",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::1")},
		Hostname:  "cart.example", Network: "net-1", Cluster: "east", Protocol: mesh.HBONE,
		TrustDomain: "td.example", ServiceAccount: "cart", Node: "node-1",
		Waypoint:       &mesh.Gateway{Service: mesh.ServiceName{Namespace: "infra", Hostname: "wp.infra"}, HBONEPort: 15008},
		NetworkGateway: &mesh.Gateway{Address: mesh.NetAddr{Network: "net-2", Addr: netip.MustParseAddr("172.16.0.9")}, HBONEPort: 15009},
		CanonicalName:  "cart", CanonicalRevision: "v2", WorkloadType: mesh.Pod, WorkloadName: "cart-dep",
		NativeTunnel: true, AppTunnel: &mesh.AppTunnel{Protocol: mesh.AppTunnelPROXY, Port: 15088},
		Services: []mesh.Membership{{
			Service: mesh.ServiceName{Namespace: "shop", Hostname: "cart.shop.svc"},
			Ports:   []mesh.Port{{Service: 80, Target: 8080, Protocol: mesh.AppHTTP11}},
		}},
		Policies: []mesh.PolicyName{{Namespace: "shop", Name: "only-front"}},
		Status:   mesh.Unhealthy, Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "sz"},
		NetworkMode: mesh.NetworkHost, Capacity: 3,
	}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("workload\ngot  %+v\nwant %+v", w, want)
	}
	s, err := ToService(fullService())
	if err != nil {
		t.Fatal(err)
	}
	wantService := &mesh.Service{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc",
		VIPs:              []mesh.NetAddr{{Network: "net-1", Addr: netip.MustParseAddr("10.96.0.7")}},
		CIDRs:             []mesh.NetPrefix{{Network: "net-1", Prefix: netip.MustParsePrefix("10.97.0.0/16")}},
		Ports:             []mesh.Port{{Service: 80, Target: 8080, Protocol: mesh.AppHTTP2}},
		SubjectAltNames:   []string{"spiffe://td/ns/shop/sa/cart"},
		Waypoint:          &mesh.Gateway{Service: mesh.ServiceName{Namespace: "shop", Hostname: "wp"}, HBONEPort: 15008},
		WeightedWaypoints: []mesh.WeightedGateway{{Gateway: mesh.Gateway{Service: mesh.ServiceName{Namespace: "shop", Hostname: "wp-canary"}}, Weight: 10}},
		LoadBalancing: &mesh.LoadBalancing{
			Preferences: []mesh.LocalityScope{mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone},
			Mode:        mesh.BalanceFailover, AllowAll: true,
		},
		IPFamilies: mesh.IPDual, Canonical: true, IngressWaypoint: true, NamespaceOnly: true,
	}
	if !reflect.DeepEqual(s, wantService) {
		t.Errorf("service\ngot  %+v\nwant %+v", s, wantService)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	w, err := ToWorkload(&Workload{Uid: "u", ApplicationTunnel: &ApplicationTunnel{}})
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Workload{
		UID: "u", TrustDomain: "cluster.local", ServiceAccount: "default", Cluster: "Kubernetes", Capacity: 1,
		AppTunnel: &mesh.AppTunnel{},
	}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("got %+v, want %+v", w, want)
	}
	if w, _ := ToWorkload(&Workload{Capacity: wrapperspb.UInt32(0)}); w.Capacity != 0 {
		t.Errorf("capacity 0 became %d", w.Capacity)
	}
	if b, _ := proto.Marshal(FromWorkload(want)); len(b) != len("\xa2\x01\x01u\xba\x01\x00") {
		t.Errorf("defaults are sent: %x", b)
	}
}

// TestLenient lists the unknown numbers that do not matter.
func TestLenient(t *testing.T) {
	t.Parallel()
	w, err := ToWorkload(&Workload{
		WorkloadType: 99,
		Services:     map[string]*PortList{"a/b": {Ports: []*Port{{ServicePort: 1, AppProtocol: 99}, {ServicePort: 1, TargetPort: 2}}}},
		Addresses:    [][]byte{netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Services[0].Ports; w.WorkloadType != mesh.Deployment || len(got) != 1 || got[0] != (mesh.Port{Service: 1, Target: 2}) {
		t.Errorf("type %v, ports %v", w.WorkloadType, got)
	}
	if !w.Addresses[0].Is4() {
		t.Errorf("mapped address stayed %v", w.Addresses[0])
	}
	s, err := ToService(&Service{Hostname: "h", Visibility: 99, Addresses: []*NetworkAddress{
		{Address: raw("10.0.0.1"), Length: proto.Uint32(32)},
		{Address: netip.MustParseAddr("::ffff:10.1.2.3").AsSlice(), Length: proto.Uint32(104)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if s.NamespaceOnly || len(s.VIPs) != 1 || len(s.CIDRs) != 1 || s.CIDRs[0].Prefix.String() != "10.0.0.0/8" {
		t.Errorf("got %+v", s)
	}
}

func TestRejections(t *testing.T) {
	t.Parallel()
	workload := func(w *Workload) *Address { return &Address{Type: &Address_Workload{Workload: w}} }
	service := func(s *Service) *Address {
		s.Hostname = "h"
		return &Address{Type: &Address_Service{Service: s}}
	}
	for want, a := range map[string]*Address{
		"type: neither workload nor service is set":                                      {},
		"workload.addresses[1]: 3 bytes, want 4 or 16":                                   workload(&Workload{Addresses: [][]byte{{1, 2, 3, 4}, {1, 2, 3}}}),
		"workload.tunnel_protocol: LEGACY_ISTIO_MTLS is not supported":                   workload(&Workload{TunnelProtocol: TunnelProtocol_LEGACY_ISTIO_MTLS}),
		"workload.tunnel_protocol: unknown value 9":                                      workload(&Workload{TunnelProtocol: 9}),
		"workload.status: unknown value 9":                                               workload(&Workload{Status: 9}),
		"workload.network_mode: unknown value 9":                                         workload(&Workload{NetworkMode: 9}),
		"workload.application_tunnel.protocol: unknown value 9":                          workload(&Workload{ApplicationTunnel: &ApplicationTunnel{Protocol: 9}}),
		"workload.application_tunnel.port: 70000 is no port":                             workload(&Workload{ApplicationTunnel: &ApplicationTunnel{Port: 70000}}),
		"workload.waypoint.destination: neither hostname nor address is set":             workload(&Workload{Waypoint: &GatewayAddress{}}),
		"workload.network_gateway.address.address: 0 bytes, want 4 or 16":                workload(&Workload{NetworkGateway: &GatewayAddress{Destination: &GatewayAddress_Address{Address: &NetworkAddress{}}}}),
		"workload.waypoint.hostname.hostname: empty":                                     workload(&Workload{Waypoint: byHost("ns", "", 0)}),
		"workload.waypoint.hbone_mtls_port: 70000 is no port":                            workload(&Workload{Waypoint: byHost("ns", "h", 70000)}),
		`workload.services["h"]: parse service name "h": want namespace/hostname`:        workload(&Workload{Services: map[string]*PortList{"h": {}}}),
		`workload.services["a/h"]: ports[0].target_port: 70000 is no port`:               workload(&Workload{Services: map[string]*PortList{"a/h": {Ports: []*Port{{TargetPort: 70000}}}}}),
		`workload.authorization_policies[0]: parse policy name "p": want namespace/name`: workload(&Workload{AuthorizationPolicies: []string{"p"}}),

		"service.addresses[0].address: 5 bytes, want 4 or 16":                                        service(&Service{Addresses: []*NetworkAddress{{Address: make([]byte, 5)}}}),
		"service.addresses[0].length: 33 is more than the address has bits, 32":                      service(&Service{Addresses: []*NetworkAddress{{Address: raw("10.0.0.1"), Length: proto.Uint32(33)}}}),
		"service.ports[0].service_port: 65536 is no port":                                            service(&Service{Ports: []*Port{{ServicePort: 65536}}}),
		"service.load_balancing.routing_preference[0]: UNSPECIFIED_SCOPE":                            service(&Service{LoadBalancing: &LoadBalancing{RoutingPreference: []LoadBalancing_Scope{0}}}),
		"service.load_balancing.routing_preference[0]: unknown value 9":                              service(&Service{LoadBalancing: &LoadBalancing{RoutingPreference: []LoadBalancing_Scope{9}}}),
		"service.load_balancing.mode: unknown value 9":                                               service(&Service{LoadBalancing: &LoadBalancing{Mode: 9}}),
		"service.load_balancing.health_policy: unknown value 9":                                      service(&Service{LoadBalancing: &LoadBalancing{HealthPolicy: 9}}),
		"service.ip_families: unknown value 9":                                                       service(&Service{IpFamilies: 9}),
		"service.waypoint.destination: neither hostname nor address is set":                          service(&Service{Waypoint: &GatewayAddress{}}),
		"service.weighted_waypoints[0].destination: not set":                                         service(&Service{WeightedWaypoints: []*WeightedWaypoint{{}}}),
		"service.weighted_waypoints[0].destination.destination: neither hostname nor address is set": service(&Service{WeightedWaypoints: []*WeightedWaypoint{{Destination: &GatewayAddress{}}}}),
		"service.hostname: empty":                                                                    {Type: &Address_Service{Service: &Service{}}},
	} {
		w, s, err := ToMesh(a)
		if err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
		if w != nil || s != nil {
			t.Errorf("%s: got a value beside the error", want)
		}
	}
}

// draw makes random nouns that have a wire form.
type draw struct{ *rand.Rand }

func (r draw) word(prefix string) string {
	if r.IntN(4) == 0 {
		return ""
	}
	return fmt.Sprint(prefix, r.IntN(100))
}

func (r draw) addr() netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(256))})
}

func (r draw) gateway() *mesh.Gateway {
	g := &mesh.Gateway{HBONEPort: uint16(r.IntN(3))}
	switch r.IntN(3) {
	case 0:
		return nil
	case 1:
		g.Address = mesh.NetAddr{Network: mesh.Network(r.word("n")), Addr: r.addr()}
	default:
		g.Service = mesh.ServiceName{Namespace: r.word("ns"), Hostname: "h" + r.word("x")}
	}
	return g
}

func (r draw) ports() (out []mesh.Port) {
	for p := range r.IntN(4) {
		out = append(out, mesh.Port{Service: uint16(p * 1000), Target: uint16(r.IntN(65536)), Protocol: mesh.AppProtocol(r.IntN(6))})
	}
	return out
}

func (r draw) workload() *mesh.Workload {
	w := &mesh.Workload{
		UID: mesh.UID(r.word("u")), Name: r.word("n"), Namespace: r.word("ns"), Hostname: r.word("h"),
		Network: mesh.Network(r.word("net")), Cluster: mesh.Cluster("c" + r.word("x")), Protocol: mesh.TunnelProtocol(r.IntN(2)),
		TrustDomain: "td" + r.word("x"), ServiceAccount: "sa" + r.word("x"), Node: r.word("node"),
		Waypoint: r.gateway(), NetworkGateway: r.gateway(), CanonicalName: r.word("cn"), CanonicalRevision: r.word("cr"),
		WorkloadType: mesh.WorkloadType(r.IntN(4)), WorkloadName: r.word("wn"), NativeTunnel: r.IntN(2) == 0,
		Status: mesh.Health(r.IntN(2)), Locality: mesh.Locality{Region: r.word("r"), Zone: r.word("z"), Subzone: r.word("s")},
		NetworkMode: mesh.NetworkMode(r.IntN(2)), Capacity: uint32(r.IntN(3)),
	}
	if r.IntN(2) == 0 {
		w.AppTunnel = &mesh.AppTunnel{Protocol: mesh.AppTunnelProtocol(r.IntN(2)), Port: uint16(r.IntN(2) * 15088)}
	}
	for range r.IntN(3) {
		w.Addresses = append(w.Addresses, r.addr())
	}
	for i := range r.IntN(4) {
		w.Services = append(w.Services, mesh.Membership{Service: mesh.ServiceName{Namespace: fmt.Sprint("a", i), Hostname: "h" + r.word("x")}, Ports: r.ports()})
	}
	for range r.IntN(3) {
		w.Policies = append(w.Policies, mesh.PolicyName{Namespace: r.word("ns"), Name: "p" + r.word("x")})
	}
	return w
}

func (r draw) service() *mesh.Service {
	s := &mesh.Service{
		Name: r.word("n"), Namespace: r.word("ns"), Hostname: "h" + r.word("x"), Ports: r.ports(), Waypoint: r.gateway(),
		IPFamilies: mesh.IPFamilies(r.IntN(4)), Canonical: r.IntN(2) == 0, IngressWaypoint: r.IntN(2) == 0, NamespaceOnly: r.IntN(2) == 0,
	}
	for range r.IntN(3) {
		a := r.addr()
		s.VIPs = append(s.VIPs, mesh.NetAddr{Network: mesh.Network(r.word("n")), Addr: a})
		s.CIDRs = append(s.CIDRs, mesh.NetPrefix{Network: mesh.Network(r.word("n")), Prefix: netip.PrefixFrom(a, r.IntN(a.BitLen())).Masked()})
		s.SubjectAltNames = append(s.SubjectAltNames, "spiffe://"+r.word("x"))
		if g := r.gateway(); g != nil {
			s.WeightedWaypoints = append(s.WeightedWaypoints, mesh.WeightedGateway{Gateway: *g, Weight: r.Uint32()})
		}
	}
	if r.IntN(2) == 0 {
		s.LoadBalancing = &mesh.LoadBalancing{Mode: mesh.BalanceMode(r.IntN(4)), AllowAll: r.IntN(2) == 0}
		for range r.IntN(3) {
			s.LoadBalancing.Preferences = append(s.LoadBalancing.Preferences, mesh.LocalityScope(1+r.IntN(6)))
		}
	}
	return s
}

// overWire encodes and decodes.
func overWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r := draw{rand.New(rand.NewPCG(1, 2))}
	for range 2000 {
		w := r.workload()
		got, err := ToWorkload(overWire(t, FromWorkload(w)))
		if err != nil || !reflect.DeepEqual(got, w) {
			t.Fatalf("workload\ngot  %+v, %v\nwant %+v", got, err, w)
		}
		s := r.service()
		gotService, err := ToService(overWire(t, FromService(s)))
		if err != nil || !reflect.DeepEqual(gotService, s) {
			t.Fatalf("service\ngot  %+v, %v\nwant %+v", gotService, err, s)
		}
	}
}

// FuzzToMesh: what decodes is in normal form, so that encoding and decoding it
// again changes nothing.
func FuzzToMesh(f *testing.F) {
	for _, a := range []*Address{
		{Type: &Address_Workload{Workload: fullWorkload()}}, {Type: &Address_Service{Service: fullService()}}, {},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Address
		if proto.Unmarshal(b, &a) != nil {
			return
		}
		w, s, err := ToMesh(&a)
		switch {
		case err != nil:
			if field, _, ok := strings.Cut(err.Error(), ":"); !ok || field == "" || w != nil || s != nil {
				t.Fatalf("error %q beside %v, %v", err, w, s)
			}
		case w != nil:
			again, err := ToWorkload(FromWorkload(w))
			if err != nil || !reflect.DeepEqual(again, w) {
				t.Fatalf("workload\nonce  %+v\ntwice %+v, %v", w, again, err)
			}
		case s != nil:
			again, err := ToService(FromService(s))
			if err != nil || !reflect.DeepEqual(again, s) || !slices.IsSortedFunc(s.Ports, func(a, b mesh.Port) int { return int(a.Service) - int(b.Service) }) {
				t.Fatalf("service\nonce  %+v\ntwice %+v, %v", s, again, err)
			}
		default:
			t.Fatal("neither workload nor service nor error")
		}
	})
}
