package compile

import (
	"fmt"
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
)

// serviceServing tells the waypoint about each port of a service that it serves.
func (c *compilation) serviceServing(a *attachments, svc *mesh.Service) {
	httpFilters, networkFilters := c.filters(a.policies)
	for _, port := range svc.Ports {
		pb := &waypointpb.Service{
			Namespace: svc.Namespace,
			Hostname:  svc.Hostname,
			Port:      uint32(port.Service),
			Addresses: vips(svc),
			Protocol:  protocol(port.Protocol),
			Cluster:   ClusterName(svc.Key(), port.Service),
		}
		name := waypointpb.ServiceResource(svc.Namespace, svc.Hostname, port.Service)
		clusters := clusterSet{}
		clusters.add(svc.Key(), port.Service)
		out := Serving{Gateway: a.waypoint.name(), Name: name}
		if pb.Protocol != waypointpb.Protocol_TCP {
			pb.HttpFilters = httpFilters
			out.Routes = c.routeTables(pb, name, a.frontend, port, a.routes, clusters)
		}
		if pb.Protocol != waypointpb.Protocol_HTTP {
			pb.NetworkFilters = networkFilters
		}
		out.Destination = &waypointpb.Destination{Kind: &waypointpb.Destination_Service{Service: pb}}
		out.Clusters = clusters.sorted()
		c.out.Serving = append(c.out.Serving, out)
	}
}

func vips(svc *mesh.Service) []*waypointpb.NetworkAddress {
	var out []*waypointpb.NetworkAddress
	for _, v := range svc.VIPs {
		out = append(out, &waypointpb.NetworkAddress{Network: string(v.Network), Address: v.Addr.AsSlice()})
	}
	return out
}

func protocol(p mesh.AppProtocol) waypointpb.Protocol {
	switch p {
	case mesh.AppHTTP11, mesh.AppHTTP2, mesh.AppGRPC:
		return waypointpb.Protocol_HTTP
	case mesh.AppTCP, mesh.AppTLS:
		return waypointpb.Protocol_TCP
	}
	return waypointpb.Protocol_AUTO
}

// ClusterName is the name of the cluster for one port of a service.
func ClusterName(s mesh.ServiceName, port uint16) string {
	return fmt.Sprintf("outbound|%d||%s", port, s.Hostname)
}

// unresolvedCluster is a cluster that does not exist: the share of a route's
// requests whose backend cannot be resolved goes there and is answered with 500.
const unresolvedCluster = "unresolved"

// clusterSet collects the clusters that routes lead to.
type clusterSet map[string]*clusterv3.Cluster

func (s clusterSet) add(service mesh.ServiceName, port uint16) string {
	name := ClusterName(service, port)
	s[name] = &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"culvert": {Fields: map[string]*structpb.Value{
			"namespace": structpb.NewStringValue(service.Namespace),
			"hostname":  structpb.NewStringValue(service.Hostname),
			"port":      structpb.NewNumberValue(float64(port)),
		}}}},
	}
	return name
}

func (s clusterSet) sorted() []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	for _, name := range slices.Sorted(maps.Keys(s)) {
		out = append(out, s[name])
	}
	return out
}

// frontendPolicies returns the policies that target the service itself.
func (c *compilation) frontendPolicies(f frontend) []*source.AuthorizationPolicy {
	return c.policiesTargeting(f.meta().Namespace, string(f.key().Kind), f.meta().Name)
}

// gatewayPolicies returns the policies that target a waypoint, or all waypoints.
func (c *compilation) gatewayPolicies(g *source.Gateway) []*source.AuthorizationPolicy {
	return append(c.policiesTargeting(g.Namespace, "Gateway", g.Name),
		c.policiesTargeting(c.mesh.RootNamespace, "GatewayClass", string(g.Spec.GatewayClassName))...)
}

func (c *compilation) policiesTargeting(namespace, kind, name string) []*source.AuthorizationPolicy {
	list := c.view.List(source.KindAuthorizationPolicy, namespace, func(o source.Object) bool {
		p, ok := o.(*source.AuthorizationPolicy)
		return ok && slices.ContainsFunc(targets(p), func(ref *typev1beta1.PolicyTargetReference) bool {
			return ref.GetKind() == kind && ref.GetName() == name
		})
	})
	out := make([]*source.AuthorizationPolicy, len(list))
	for i, o := range list {
		out[i] = o.(*source.AuthorizationPolicy)
	}
	return out
}

// filters returns the filters that enforce policies: what denies comes first,
// then what allows.
func (c *compilation) filters(policies []*source.AuthorizationPolicy) (http, network []*anypb.Any) {
	for _, action := range []rbacAction{rbacDeny, rbacAllow} {
		if rules := rulesOf(policies, action, false); rules != nil {
			http = append(http, pack(&hcmv3.HttpFilter{
				Name:       "envoy.filters.http.rbac",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&httprbacv3.RBAC{Rules: rules})},
			}))
		}
		if rules := rulesOf(policies, action, true); rules != nil {
			network = append(network, pack(&listenerv3.Filter{
				Name:       "envoy.filters.network.rbac",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&netrbacv3.RBAC{Rules: rules, StatPrefix: "tcp."})},
			}))
		}
	}
	return http, network
}

// rulesOf returns the rules of all policies with that action, or nil without any.
func rulesOf(policies []*source.AuthorizationPolicy, action rbacAction, tcp bool) *rbacv3.RBAC {
	var out *rbacv3.RBAC
	for _, p := range policies {
		t := &l7{policy: p, tcp: tcp}
		got, rules := t.translate()
		if got != action {
			continue
		}
		if out == nil {
			out = &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{}}
			if action == rbacDeny {
				out.Action = rbacv3.RBAC_DENY
			}
		}
		maps.Copy(out.Policies, rules)
	}
	return out
}

// pack packs m the same way every time, so that versions by content hold still.
func pack(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("compile: message built here does not encode: " + err.Error()) // only invalid UTF-8, which decoding refuses
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}
