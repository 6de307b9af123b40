package localxds

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func ip(s string) netip.Addr           { return netip.MustParseAddr(s) }
func prefixes(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
func wp() mesh.Gateway {
	return mesh.Gateway{Service: mesh.ServiceName{Namespace: "infra", Hostname: "wp.infra"}, HBONEPort: 15008}
}

func TestFull(t *testing.T) {
	t.Parallel()
	workloads, services, policies, err := ParseFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	waypoint := wp()
	wantWorkloads := []*mesh.Workload{{
		UID: "east//Pod/shop/cart-1", Name: "cart-1", Namespace: "shop",
		Addresses: []netip.Addr{ip("10.1.2.3"), ip("fd00::1")}, Hostname: "cart.example", Network: "net-1", Cluster: "east",
		Protocol: mesh.HBONE, TrustDomain: "td.example", ServiceAccount: "cart", Node: "node-1", Waypoint: &waypoint,
		NetworkGateway: &mesh.Gateway{Address: mesh.NetAddr{Network: "net-2", Addr: ip("172.16.0.9")}, HBONEPort: 15009},
		CanonicalName:  "cart", CanonicalRevision: "v2", WorkloadType: mesh.Pod, WorkloadName: "cart-dep", NativeTunnel: true,
		AppTunnel: &mesh.AppTunnel{Protocol: mesh.AppTunnelPROXY, Port: 15088},
		Services: []mesh.Membership{
			{Service: mesh.ServiceName{Namespace: "shop", Hostname: "all.shop.svc"}},
			{Service: mesh.ServiceName{Namespace: "shop", Hostname: "cart.shop.svc"}, Ports: []mesh.Port{{Service: 80, Target: 8080}, {Service: 443, Target: 8443}}},
		},
		Policies: []mesh.PolicyName{{Namespace: "shop", Name: "only-front"}}, Status: mesh.Unhealthy,
		Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "sz"}, NetworkMode: mesh.NetworkHost, Capacity: 3,
	}, {Namespace: "shop", Capacity: 1}}
	wantPolicies := []*mesh.Policy{{
		Name: mesh.PolicyName{Namespace: "shop", Name: "only-front"}, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			Namespaces:          []mesh.StringMatch{{Kind: mesh.MatchExact, Value: "a"}, {Kind: mesh.MatchPrefix, Value: "b"}},
			NotNamespaces:       []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: "c"}},
			Principals:          []mesh.StringMatch{{Kind: mesh.MatchPresence}},
			NotPrincipals:       []mesh.StringMatch{{Kind: mesh.MatchExact, Value: "td/ns/a/sa/b"}},
			ServiceAccounts:     []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "front"}},
			NotServiceAccounts:  []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "back"}},
			SourceIPs:           prefixes("10.0.0.0/8"),
			NotSourceIPs:        prefixes("10.1.2.3/32"),
			DestinationIPs:      prefixes("fd00::/8"),
			NotDestinationIPs:   prefixes("10.2.0.0/16"),
			DestinationPorts:    []uint16{80},
			NotDestinationPorts: []uint16{443},
		}, {}}}, {}}}, {}},
	}}
	wantServices := []*mesh.Service{{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc",
		VIPs:            []mesh.NetAddr{{Network: "net-1", Addr: ip("10.96.0.7")}, {Addr: ip("fd00:96::7")}},
		CIDRs:           []mesh.NetPrefix{{Network: "net-1", Prefix: netip.MustParsePrefix("10.97.0.0/16")}},
		Ports:           []mesh.Port{{Service: 80, Target: 8080}, {Service: 443, Target: 8443}},
		SubjectAltNames: []string{"spiffe://td/ns/shop/sa/cart"}, Waypoint: &waypoint,
		WeightedWaypoints: []mesh.WeightedGateway{{Gateway: wp(), Weight: 90}},
		LoadBalancing: &mesh.LoadBalancing{
			Preferences: []mesh.LocalityScope{mesh.ScopeNetwork, mesh.ScopeZone}, Mode: mesh.BalanceFailover, AllowAll: true,
		},
		IPFamilies: mesh.IPDual, Canonical: true, NamespaceOnly: true,
	}, {Name: "plain", Namespace: "shop", Hostname: "plain.shop.svc"}}
	opts := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	for what, pair := range map[string][2]any{
		"workloads": {wantWorkloads, workloads}, "services": {wantServices, services}, "policies": {wantPolicies, policies},
	} {
		if diff := cmp.Diff(pair[0], pair[1], opts); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# nothing\n", "{}", "workloads: []\nservices:\n"} {
		if w, s, p, err := Parse([]byte(text)); err != nil || len(w)+len(s)+len(p) != 0 {
			t.Errorf("%q: %v %v %v %v", text, w, s, p, err)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const (
		workload = "workloads:\n- namespace: a\n  workloadIps: []\n  services: {}\n"
		service  = "services:\n- name: a\n  namespace: b\n  hostname: c\n  vips: []\n  ports: {}\n"
		policy   = "policies:\n- name: a\n  namespace: b\n  scope: Global\n  action: Allow\n"
	)
	for text, want := range map[string]string{
		"workload: []": `line 1: unknown key "workload"`,
		"- a":          "line 1: want a mapping",
		"a: b: c":      "mapping values are not allowed",
		"workloads: 5": "line 1: workloads: ",
		"workloads:\n- namespace: a\n  services: {}":                                                     `workloads[0]: line 2: key "workloadIps" is missing`,
		workload + "  nope: 1":                                                                           `workloads[0]: line 5: unknown key "nope"`,
		workload + "  namespace: b":                                                                      `workloads[0]: line 5: key "namespace" comes twice`,
		workload + "  protocol: QUIC":                                                                    `workloads[0]: line 5: protocol: unknown value "QUIC"`,
		workload + "  capacity: many":                                                                    "workloads[0]: line 5: capacity: ",
		workload + "  locality: {zone: z}":                                                               `workloads[0]: locality: line 5: key "region" is missing`,
		workload + "  waypoint: {destination: x, hboneMtlsPort: 1}":                                      `workloads[0]: waypoint: line 5: destination: "x": want network/address or namespace/hostname`,
		workload + "  waypoint: {destination: a/b, hboneMtlsPort: 99999}":                                "workloads[0]: waypoint: line 5: hboneMtlsPort: ",
		workload + "  authorizationPolicies: [a]":                                                        `workloads[0]: authorizationPolicies[0]: line 5: parse policy name "a"`,
		"workloads:\n- namespace: a\n  workloadIps: [x]\n  services: {}":                                 `workloads[0]: workloadIps[0]: line 3: ParseAddr("x")`,
		"workloads:\n- namespace: a\n  workloadIps: []\n  services: {h: {}}":                             `workloads[0]: services: line 4: parse service name "h"`,
		"workloads:\n- namespace: a\n  workloadIps: []\n  services: {a/h: {80: x}}":                      `workloads[0]: services: a/h: `,
		workload + "- namespace: b\n  workloadIps: []\n  services: {}":                                   `workloads[1]: line 5: uid "" comes twice`,
		service + "  cidrVips: [{network: n, cidr: 1.2.3.4}]":                                            `services[0]: cidrVips[0]: line 7: cidr: `,
		service + "  endpoints: {x: {}}":                                                                 "services[0]: line 7: endpoints: not supported here",
		service + "  loadBalancer: {routingPreferences: [Planet], mode: Strict, healthPolicy: AllowAll}": `routingPreferences[0]: line 7: unknown value "Planet"`,
		service + "  ipFamilies: IPv5":                                                                   `services[0]: line 7: ipFamilies: unknown value "IPv5"`,
		policy:                                                                                           `policies[0]: line 2: key "rules" is missing`,
		policy + "  rules:\n  - - - sourceIps: [10.0.0.0/99]":                                            "policies[0]: rules[0]: clauses[0]: matches[0]: sourceIps[0]: line 7: ",
		policy + "  rules:\n  - - - principals: [x]":                                                     "principals[0]: line 7: want one of the tags",
		policy + "  rules:\n  - - - principals: [!Exact [x]]":                                            "principals[0]: line 7: want a text after !Exact",
		policy + "  rules:\n  - - - destinationPorts: [70000]":                                           "destinationPorts: ",
	} {
		_, _, _, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got error %v\nwant %s", text, err, want)
		}
	}
	if _, _, _, err := ParseFile(filepath.Join(t.TempDir(), "absent")); !os.IsNotExist(err) {
		t.Errorf("absent file: %v", err)
	}
}

// FuzzParse: no document makes it panic, and the same document means the same.
func FuzzParse(f *testing.F) {
	full, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte("policies: [{name: &a x, namespace: *a, scope: Global, action: Allow, rules: [[[*a]]]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		w, s, p, err := Parse(data)
		if err != nil && (w != nil || s != nil || p != nil) {
			t.Fatal("values beside an error")
		}
		w2, s2, p2, _ := Parse(data)
		if !reflect.DeepEqual([]any{w, s, p}, []any{w2, s2, p2}) {
			t.Fatal("parsed twice, got two results")
		}
	})
}
