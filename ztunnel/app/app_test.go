package app

import (
	"io"
	"math"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

func TestScopes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"info":                        "info",
		"debug,access=off":            "debug,access=off",
		"ztunnel=debug":               "debug",
		"warn,ztunnel::access=trace":  "warn,access=trace",
		"ztunnel::proxy::inbound=err": "inbound=err",
	} {
		if got := scopes(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		files fstest.MapFS
		want  int64
	}{
		{fstest.MapFS{}, math.MaxInt64},
		{fstest.MapFS{"memory.max": {Data: []byte("max\n")}}, math.MaxInt64},
		{fstest.MapFS{"memory.max": {Data: []byte("1000\n")}}, 900},
		{fstest.MapFS{"memory/memory.limit_in_bytes": {Data: []byte("9223372036854771712\n")}}, math.MaxInt64},
		{fstest.MapFS{"memory/memory.limit_in_bytes": {Data: []byte("2000\n")}}, 1800},
	} {
		if got := memoryLimit(c.files); got != c.want {
			t.Errorf("%v: %d, want %d", c.files, got, c.want)
		}
	}
}

func newApp(t *testing.T, environ ...string) *App {
	t.Helper()
	cfg, err := ParseConfig(append([]string{"XDS_ADDRESS=http://127.0.0.1:1", "FAKE_CA=true", "RUST_LOG=error"}, environ...))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

func resource(t *testing.T, name string, m proto.Message) xds.Resource {
	t.Helper()
	body, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: name, Body: body}
}

// TestPartialRejection holds that a bad resource is reported by name and the good
// ones of the same response take effect.
func TestPartialRejection(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	good := &mesh.Workload{UID: "good", Name: "good", Namespace: "default", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Capacity: 1}
	bad := workload.FromWorkload(good)
	bad.Uid, bad.Addresses = "bad", [][]byte{{1, 2, 3}}
	rejected := a.applyAddresses([]xds.Resource{
		resource(t, "bad", &workload.Address{Type: &workload.Address_Workload{Workload: bad}}),
		resource(t, "good", &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(good)}}),
		{Name: "garbage", Body: &anypb.Any{TypeUrl: workload.TypeURL, Value: []byte{0xff}}},
	}, nil)
	if len(rejected) != 2 || rejected[0].Name != "bad" || rejected[1].Name != "garbage" || rejected[0].Err == nil {
		t.Errorf("rejected %v", rejected)
	}
	if a.store.Workload("good") == nil || a.store.Workload("bad") != nil {
		t.Error("the good workload must be known and the bad one not")
	}
	a.applyAddresses(nil, []string{"good"})
	if a.store.Workload("good") != nil {
		t.Error("the removed workload is still known")
	}

	name := mesh.PolicyName{Namespace: "default", Name: "p"}
	rejected = a.applyPolicies([]xds.Resource{
		resource(t, "default/p", authz.FromMesh(&mesh.Policy{Name: name})),
		{Name: "default/garbage", Body: &anypb.Any{TypeUrl: authz.TypeURL, Value: []byte{0xff}}},
	}, nil)
	if len(rejected) != 1 || rejected[0].Name != "default/garbage" || a.store.Policy(name) == nil {
		t.Errorf("policies: rejected %v", rejected)
	}
	a.applyPolicies(nil, []string{"default/p", "nonsense"})
	if a.store.Policy(name) != nil {
		t.Error("the removed policy is still known")
	}
}

func TestNode(t *testing.T) {
	t.Parallel()
	c := parse(t, "INSTANCE_IP=10.0.0.5", "POD_NAME=ztunnel-x", "POD_NAMESPACE=istio-system", "NODE_NAME=n1", "ISTIO_META_DNS_CAPTURE=true")
	if id := nodeID(c); id != "ztunnel~10.0.0.5~ztunnel-x.istio-system~istio-system.svc.cluster.local" {
		t.Error(id)
	}
	m := nodeMetadata(c)
	for k, want := range map[string]string{"NAME": "ztunnel-x", "NAMESPACE": "istio-system", "NODE_NAME": "n1", "INSTANCE_IPS": "10.0.0.5", "DNS_CAPTURE": "true"} {
		if m[k] != want {
			t.Errorf("metadata %s is %v, want %s", k, m[k], want)
		}
	}
}

func TestUnexpectedArgument(t *testing.T) {
	t.Parallel()
	if err := Main(t.Context(), []string{"--help"}, nil, io.Discard); err == nil || !strings.Contains(err.Error(), "--help") {
		t.Errorf("error %v", err)
	}
}
