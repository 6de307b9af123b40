package discovery

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

func resource(t *testing.T, name string, m proto.Message) xds.Resource {
	t.Helper()
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: name, Body: body}
}

// A bad resource is reported by name and the good ones of the same response take
// effect.
func TestPartialRejection(t *testing.T) {
	t.Parallel()
	store := workloads.New()
	addresses, policies := Addresses(store), Policies(store, nil)
	good := &mesh.Workload{UID: "good", Name: "good", Namespace: "default", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Capacity: 1}
	bad := workload.FromWorkload(good)
	bad.Uid, bad.Addresses = "bad", [][]byte{{1, 2, 3}}
	svc := workload.FromService(&mesh.Service{Name: "cart", Namespace: "default", Hostname: "cart.default.svc.cluster.local"})
	rejected := addresses.Handle([]xds.Resource{
		resource(t, "bad", &workload.Address{Type: &workload.Address_Workload{Workload: bad}}),
		resource(t, "good", &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(good)}}),
		resource(t, "default/cart", &workload.Address{Type: &workload.Address_Service{Service: svc}}),
		{Name: "garbage", Body: &anypb.Any{TypeUrl: workload.TypeURL, Value: []byte{0xff}}},
	}, nil)
	if len(rejected) != 2 || rejected[0].Name != "bad" || rejected[1].Name != "garbage" || rejected[0].Err == nil {
		t.Errorf("rejected %v", rejected)
	}
	if store.Workload("good") == nil || store.Workload("bad") != nil || len(store.ServicesByHost("cart.default.svc.cluster.local")) != 1 {
		t.Error("the good workload and the service must be known and the bad workload not")
	}
	addresses.Handle(nil, []string{"good"})
	if store.Workload("good") != nil {
		t.Error("the removed workload is still known")
	}

	name := mesh.PolicyName{Namespace: "default", Name: "p"}
	rejected = policies.Handle([]xds.Resource{
		resource(t, "default/p", authz.FromMesh(&mesh.Policy{Name: name})),
		{Name: "default/garbage", Body: &anypb.Any{TypeUrl: authz.TypeURL, Value: []byte{0xff}}},
	}, nil)
	if len(rejected) != 1 || rejected[0].Name != "default/garbage" || store.Policy(name) == nil {
		t.Errorf("policies: rejected %v", rejected)
	}
	policies.Handle(nil, []string{"default/p", "nonsense"})
	if store.Policy(name) != nil {
		t.Error("the removed policy is still known")
	}
}

// TestMalformedAddresses holds that a policy with an address that is none takes
// effect without it, and that this is told.
func TestMalformedAddresses(t *testing.T) {
	t.Parallel()
	store := workloads.New()
	name := mesh.PolicyName{Namespace: "default", Name: "p"}
	var told []string
	policies := Policies(store, func(of mesh.PolicyName, addresses []string) {
		if of != name {
			t.Errorf("told of %s", of)
		}
		told = append(told, addresses...)
	})
	m := authz.FromMesh(&mesh.Policy{Name: name, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
		SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}}}}})
	good := resource(t, name.String(), m)
	list := &m.Rules[0].Clauses[0].Matches[0].SourceIps
	*list = append(*list, &authz.Address{Address: []byte{1, 2}, Length: 8})
	if rejected := policies.Handle([]xds.Resource{resource(t, name.String(), m)}, nil); len(rejected) != 0 {
		t.Errorf("rejected %v", rejected)
	}
	if p := store.Policy(name); p == nil || len(p.Rules[0].Clauses[0].Matches[0].SourceIPs) != 1 {
		t.Errorf("the policy in force is %+v", p)
	}
	want := "rules[0].clauses[0].matches[0].source_ips[1]: address has 2 bytes, want 4 or 16"
	if len(told) != 1 || told[0] != want {
		t.Errorf("told %q, want %q", told, want)
	}
	if policies.Handle([]xds.Resource{good}, nil); len(told) != 1 {
		t.Errorf("told of a good policy: %q", told)
	}
}
