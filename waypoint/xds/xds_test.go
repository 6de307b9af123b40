package xds

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/router"
)

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// bench is a decoder and the store that it fills.
type bench struct {
	t     testing.TB
	d     *Decoder
	store *config.Store
}

func newBench(t testing.TB) *bench {
	store := config.NewStore()
	return &bench{t, NewDecoder(store), store}
}

func (b *bench) send(typeURL, name string, m proto.Message) error {
	b.t.Helper()
	for _, s := range b.d.Subscriptions() {
		if s.TypeURL == typeURL {
			if r := s.Handle([]xds.Resource{{Name: name, Body: pack(b.t, m)}}, nil); len(r) > 0 {
				return r[0].Err
			}
			return nil
		}
	}
	b.t.Fatal(typeURL)
	return nil
}

func (b *bench) must(typeURL, name string, m proto.Message) {
	b.t.Helper()
	if err := b.send(typeURL, name, m); err != nil {
		b.t.Fatal(err)
	}
}

func cluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"culvert": {Fields: map[string]*structpb.Value{
			"namespace": structpb.NewStringValue("shop"), "hostname": structpb.NewStringValue("cart"), "port": structpb.NewNumberValue(80)}}}}}
}

func routes(t testing.TB, name, action string) *routev3.RouteConfiguration {
	t.Helper()
	var rc routev3.RouteConfiguration
	text := `{"name": "` + name + `", "virtualHosts": [{"name": "v", "domains": ["*"], "routes": [{"name": "r", "match": {"prefix": "/"}, ` + action + `}]}]}`
	if err := protojson.Unmarshal([]byte(text), &rc); err != nil {
		t.Fatal(err)
	}
	return &rc
}

func service(routeConfig string, filters ...*anypb.Any) *waypointpb.Destination {
	return &waypointpb.Destination{Kind: &waypointpb.Destination_Service{Service: &waypointpb.Service{
		Namespace: "shop", Hostname: "cart", Port: 80, Protocol: waypointpb.Protocol_HTTP, RouteConfig: routeConfig, Cluster: "c",
		Addresses:   []*waypointpb.NetworkAddress{{Network: "n", Address: netip.MustParseAddr("10.0.0.1").AsSlice()}},
		HttpFilters: filters,
	}}}
}

func TestDestinationWaitsForWhatItNames(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	at := mesh.NetAddr{Network: "n", Addr: netip.MustParseAddr("10.0.0.1")}
	b.must(waypointpb.TypeURL, "shop/cart/80", service("r1"))
	if b.store.Load().Lookup(at, 80) != nil || b.d.Waiting()["shop/cart/80"] == "" {
		t.Error("served before its routes are known")
	}
	b.must(RouteTypeURL, "r1", routes(t, "r1", `"route": {"cluster": "c"}`))
	b.must(ClusterTypeURL, "c", cluster("c"))
	d := b.store.Load().Lookup(at, 80)
	if d == nil || d.Routes != "r1" || d.Protocol != config.HTTP || len(b.d.Waiting()) != 0 {
		t.Fatalf("%+v, waiting %v", d, b.d.Waiting())
	}
	b.must(waypointpb.TypeURL, "shop/cart/80", service("r2"))
	if got := b.store.Load().Lookup(at, 80); got == nil || got.Routes != "r1" {
		t.Errorf("%+v: the former version serves until the new routes are known", got)
	}
	b.must(RouteTypeURL, "r2", routes(t, "r2", `"route": {"cluster": "c"}`))
	if got := b.store.Load().Lookup(at, 80); got.Routes != "r2" {
		t.Errorf("%+v", got)
	}
	if b.store.Load().Lookup(at, 81) != nil {
		t.Error("a port that is not served is found")
	}
	for _, s := range b.d.Subscriptions() {
		if s.TypeURL == waypointpb.TypeURL {
			s.Handle(nil, []string{"shop/cart/80"})
		}
	}
	if b.store.Load().Lookup(at, 80) != nil {
		t.Error("found after its removal")
	}
}

// What is not implemented refuses the whole resource and names the field.
func TestRefused(t *testing.T) {
	t.Parallel()
	const path = "virtual_hosts[0].routes[0]"
	for action, want := range map[string]string{
		`"route": {"cluster": "c", "hedgePolicy": {"initialRequests": 1}}`: path + ".route.hedge_policy: not supported",
		`"route": {"clusterHeader": "x"}`:                                  path + ".route.cluster_header: not supported",
		`"route": {"cluster": "c", "timeout": "-1s"}`:                      path + ".route: timeout: negative",
		`"route": {}`: path + ".route: cluster: required",
		`"route": {"weightedClusters": {"clusters": []}}`:                                                      path + ".route.weighted_clusters: clusters: required",
		`"nonForwardingAction": {}`:                                                                            path + ".non_forwarding_action: not supported",
		`"directResponse": {"status": 100}`:                                                                    path + ".direct_response: status: 100",
		`"route": {"cluster": "c"}, "typedPerFilterConfig": {}`:                                                "",
		`"route": {"cluster": "c"}, "requestHeadersToAdd": [{"header": {"key": "x", "value": "%REQ(y)%"}}]`:    path + ".request_headers_to_add[0].header: value: substitution",
		`"route": {"cluster": "c"}, "requestHeadersToAdd": [{"header": {"key": "x", "value": "100%%"}}]`:       "",
		`"route": {"cluster": "c"}, "responseHeadersToAdd": [{"header": {"key": "content-length"}}]`:           `key: "content-length" cannot be changed`,
		`"route": {"cluster": "c"}, "requestHeadersToRemove": ["Host"]`:                                        `"host" cannot be removed`,
		`"route": {"cluster": "c"}, "requestHeadersToAdd": [{"header": {"key": "x", "value": "a\r\nb: c"}}]`:   "control character",
		`"route": {"cluster": "c", "regexRewrite": {"pattern": {"regex": "("}, "substitution": "x"}}`:          "regex_rewrite.pattern.regex",
		`"route": {"cluster": "c", "clusterNotFoundResponseCode": "INTERNAL_SERVER_ERROR", "timeout": "1.5s"}`: "",
	} {
		err := newBench(t).send(RouteTypeURL, "r", routes(t, "r", action))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", action, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %s", action, err, want)
		}
	}
}

func TestRefusedKeepsTheLastGood(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.must(RouteTypeURL, "r", routes(t, "r", `"route": {"cluster": "c"}`))
	good := b.store.Load().Routes["r"]
	if b.send(RouteTypeURL, "r", routes(t, "r", `"route": {"cluster": "c", "priority": "HIGH"}`)) == nil {
		t.Error("accepted")
	}
	if b.store.Load().Routes["r"] != good {
		t.Error("the last good table is gone")
	}
	if err := b.send(RouteTypeURL, "other", routes(t, "r", `"route": {"cluster": "c"}`)); err == nil {
		t.Error("a resource of another name is accepted")
	}
}

func TestClusters(t *testing.T) {
	t.Parallel()
	c := cluster("c")
	b := newBench(t)
	b.must(ClusterTypeURL, "c", c)
	if got := b.store.Load().Clusters["c"]; got.Service != (mesh.ServiceName{Namespace: "shop", Hostname: "cart"}) || got.Port != 80 {
		t.Errorf("%+v", got)
	}
	for want, spoil := range map[string]func(*clusterv3.Cluster){
		"lb_policy": func(c *clusterv3.Cluster) { c.LbPolicy = clusterv3.Cluster_MAGLEV },
		"type": func(c *clusterv3.Cluster) {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		},
		"hostname":          func(c *clusterv3.Cluster) { c.Metadata = nil },
		"outlier_detection": func(c *clusterv3.Cluster) { c.OutlierDetection = &clusterv3.OutlierDetection{} },
	} {
		bad := cluster("c")
		spoil(bad)
		if err := b.send(ClusterTypeURL, "c", bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func httpFilter(t testing.TB, rules string) *anypb.Any {
	t.Helper()
	var r rbacv3.RBAC
	if err := protojson.Unmarshal([]byte(rules), &r); err != nil {
		t.Fatal(err)
	}
	return pack(t, &hcmv3.HttpFilter{Name: "envoy.filters.http.rbac",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &httprbacv3.RBAC{Rules: &r})}})
}

func TestRBAC(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.must(RouteTypeURL, "r", routes(t, "r", `"route": {"cluster": "c"}`))
	b.must(ClusterTypeURL, "c", cluster("c"))
	b.must(waypointpb.TypeURL, "d", service("r", httpFilter(t, `{"action": "ALLOW", "policies": {"ns[shop]-policy[web]-rule[0]": {
		"permissions": [{"andRules": {"rules": [
			{"orRules": {"rules": [{"header": {"name": ":method", "stringMatch": {"exact": "GET"}}}]}},
			{"urlPath": {"path": {"prefix": "/api"}}}, {"notRule": {"destinationPort": 81}}]}}],
		"principals": [{"andIds": {"ids": [
			{"authenticated": {"principalName": {"safeRegex": {"regex": "spiffe://[^/]+/ns/shop/sa/[^/]+"}}}},
			{"notId": {"directRemoteIp": {"addressPrefix": "10.9.0.0", "prefixLen": 16}}}]}}]}}}`)))
	chain := b.store.Load().Destinations["d"].HTTPFilters
	for _, c := range []struct {
		method, path, ns, ip string
		ok                   bool
	}{
		{"GET", "/api/x", "shop", "10.1.0.1", true},
		{"POST", "/api/x", "shop", "10.1.0.1", false},
		{"GET", "/apx", "shop", "10.1.0.1", false},
		{"GET", "/api", "other", "10.1.0.1", false},
		{"GET", "/api", "shop", "10.9.0.1", false},
	} {
		req := new(http.Request)
		req.Reset()
		req.Method = c.method
		req.SetTarget([]byte(c.path))
		x := filter.Exchange{Source: netip.AddrPortFrom(netip.MustParseAddr(c.ip), 1), Destination: netip.MustParseAddrPort("10.0.0.1:80"),
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: c.ns, ServiceAccount: "web"}}
		if reply, _ := chain.Request(&x, req); (reply == nil) != c.ok {
			t.Errorf("%+v: %v", c, reply)
		}
	}
	for want, rules := range map[string]string{
		`rules.policies["p"].condition: not supported`:                                           `{"policies": {"p": {"condition": {}}}}`,
		`principals[0].remote_ip: not supported`:                                                 `{"policies": {"p": {"principals": [{"remoteIp": {"addressPrefix": "1.2.3.4"}}]}}}`,
		`permissions[0].header.range_match: not supported`:                                       `{"policies": {"p": {"permissions": [{"header": {"name": "x", "rangeMatch": {"start": 1}}}]}}}`,
		`principals[0].authenticated.principal_name.regex: `:                                     `{"policies": {"p": {"principals": [{"authenticated": {"principalName": {"safeRegex": {"regex": "("}}}}]}}}`,
		`principals[0].direct_remote_ip.prefix_len: `:                                            `{"policies": {"p": {"principals": [{"directRemoteIp": {"addressPrefix": "1.2.3.4", "prefixLen": 40}}]}}}`,
		`http_filters[0].typed_config.rules.policies["p"].permissions[0].matcher: not supported`: `{"policies": {"p": {"permissions": [{"matcher": {}}]}}}`,
	} {
		if err := b.send(waypointpb.TypeURL, "d", service("r", httpFilter(t, rules))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	unknown := pack(t, &hcmv3.HttpFilter{Name: "lua", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &rbacv3.RBAC{})}})
	if err := b.send(waypointpb.TypeURL, "d", service("r", unknown)); err == nil || !strings.Contains(err.Error(), `filter "lua"`) {
		t.Error(err)
	}
	if b.store.Load().Destinations["d"].HTTPFilters[0] != chain[0] {
		t.Error("a refused policy replaced the one in force")
	}
}

// Any bytes decode or are refused; nothing panics.
func FuzzDecode(f *testing.F) {
	seed := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(routes(f, "r", `"route": {"cluster": "c"}`))
	seed(cluster("c"))
	seed(service("r", httpFilter(f, `{"policies": {"p": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}`)))
	f.Fuzz(func(t *testing.T, value []byte) {
		b := newBench(t)
		for _, s := range b.d.Subscriptions() {
			s.Handle([]xds.Resource{{Name: "x", Body: &anypb.Any{TypeUrl: s.TypeURL, Value: value}}}, nil)
		}
	})
}

// TestRetryAndMirror: what a route may ask for beside its backends.
func TestRetryAndMirror(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.must(RouteTypeURL, "r", routes(t, "r", `"route": {"cluster": "c", "retryPolicy": {"retryOn": "connect-failure,reset,retriable-status-codes",
		"numRetries": 3, "perTryTimeout": "2s", "retriableStatusCodes": [502, 503], "retryBackOff": {"baseInterval": "0.05s"}},
		"requestMirrorPolicies": [{"cluster": "m"}, {"cluster": "n", "runtimeFraction": {"defaultValue": {"numerator": 20}}}]}`))
	table := b.store.Load().Routes["r"].(*router.Table)
	f := table.Source().Hosts[0].Routes[0].Forward
	if want := (config.Retry{Attempts: 3, Codes: []int{502, 503}, TryTimeout: 2 * time.Second, Backoff: 50 * time.Millisecond}); !reflect.DeepEqual(*f.Retry, want) {
		t.Errorf("%+v, want %+v", *f.Retry, want)
	}
	if want := []config.Mirror{{Cluster: "m", Millionths: 1_000_000}, {Cluster: "n", Millionths: 200_000}}; !slices.Equal(f.Mirrors, want) {
		t.Errorf("%+v, want %+v", f.Mirrors, want)
	}
	for field, action := range map[string]string{
		"retry_policy: retry_on":               `"route": {"cluster": "c", "retryPolicy": {"retryOn": "5xx"}}`,
		"request_mirror_policies":              `"route": {"cluster": "c", "requestMirrorPolicies": [{}]}`,
		"retry_policy.host_selection_retry_ma": `"route": {"cluster": "c", "retryPolicy": {"retryOn": "connect-failure,reset", "hostSelectionRetryMaxAttempts": 3}}`,
	} {
		if err := b.send(RouteTypeURL, "r", routes(t, "r", action)); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not name %s", err, field)
		}
	}
}
