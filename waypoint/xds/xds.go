// Package xds decodes what the control plane sends into the waypoint's runtime
// configuration.
//
//	Destination (ours) ─┐
//	RouteConfiguration ─┼─ decode ─ compile ─▶ config.Snapshot ─▶ config.Store
//	Cluster            ─┘   └ refused: NACK with the path of the field, last good stays
//	Address ────────────────────────────────▶ workloads.Store
//
// A resource takes effect whole or not at all: a field that is not implemented
// refuses the resource, because half of a policy is another policy. A
// destination that names a route table or cluster which has not arrived keeps
// its previous version, and a new one waits.
//
// The decoder is used by the xDS client's one goroutine; what it publishes is
// immutable.
package xds

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/router"
)

// Type URLs of Envoy's resources.
const (
	RouteTypeURL   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterTypeURL = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// Features is what this waypoint implements; it tells them in its node metadata.
func Features() []string {
	return []string{"http/1.1", "http/2", "tcp", "route.header", "route.query", "route.weight", "route.timeout", "route.rewrite", "route.redirect",
		"route.direct_response", "route.header_mods", "route.source_namespace", "route.retry", "route.mirror", "filter.rbac", "network_filter.rbac"}
}

// Decoder keeps the accepted resources and publishes them as snapshots.
type Decoder struct {
	store *config.Store

	mu           sync.Mutex
	destinations map[string]*config.Destination // as last accepted
	routes       map[string]config.Routes
	clusters     map[string]*config.Cluster
	waiting      map[string]string // destination: what it waits for
}

// NewDecoder returns a decoder that publishes to store.
func NewDecoder(store *config.Store) *Decoder {
	return &Decoder{store: store,
		destinations: map[string]*config.Destination{}, routes: map[string]config.Routes{}, clusters: map[string]*config.Cluster{}}
}

// Subscriptions returns the waypoint's own types, in the order in which they
// should be asked for.
func (d *Decoder) Subscriptions() []xds.Subscription {
	return []xds.Subscription{
		{TypeURL: ClusterTypeURL, Wildcard: true, Handle: d.clusterUpdate},
		{TypeURL: RouteTypeURL, Wildcard: true, Handle: d.routeUpdate},
		{TypeURL: waypointpb.TypeURL, Wildcard: true, Handle: d.destinationUpdate},
	}
}

// Waiting returns the destinations that wait for another resource, and for which.
func (d *Decoder) Waiting() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.waiting)
}

func (d *Decoder) clusterUpdate(added []xds.Resource, removed []string) []xds.Rejected {
	return update(d, &d.clusters, added, removed, func(r xds.Resource) (*config.Cluster, error) {
		return decode(r.Body, new(clusterv3.Cluster), r.Name, decodeCluster)
	})
}

func (d *Decoder) routeUpdate(added []xds.Resource, removed []string) []xds.Rejected {
	return update(d, &d.routes, added, removed, func(r xds.Resource) (config.Routes, error) {
		table, err := decode(r.Body, new(routev3.RouteConfiguration), r.Name, decodeRoutes)
		if err != nil {
			return nil, err
		}
		return router.Compile(table)
	})
}

func (d *Decoder) destinationUpdate(added []xds.Resource, removed []string) []xds.Rejected {
	return update(d, &d.destinations, added, removed, func(r xds.Resource) (*config.Destination, error) {
		dest, err := decode(r.Body, new(waypointpb.Destination), r.Name, decodeDestination)
		if err == nil {
			dest.Name = r.Name
		}
		return dest, err
	})
}

// update applies one response to one kind of resource and publishes the result.
// held is replaced by a new map: a published snapshot shares the old one.
func update[T any](d *Decoder, held *map[string]T, added []xds.Resource, removed []string,
	build func(xds.Resource) (T, error)) (rejected []xds.Rejected) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := maps.Clone(*held)
	for _, name := range removed {
		delete(next, name)
	}
	for _, r := range added {
		v, err := build(r)
		if err != nil {
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
			continue
		}
		next[r.Name] = v
	}
	*held = next
	d.publishLocked()
	return rejected
}

// decode unpacks one resource, refuses fields that are not implemented, and builds.
func decode[M proto.Message, T any](body *anypb.Any, m M, name string, build func(M) (*T, error)) (*T, error) {
	if body == nil {
		return nil, fmt.Errorf("resource without a body")
	}
	if err := body.UnmarshalTo(m); err != nil {
		return nil, err
	}
	if err := strict(m.ProtoReflect(), ""); err != nil {
		return nil, err
	}
	if n, ok := any(m).(interface{ GetName() string }); ok && n.GetName() != name {
		return nil, fmt.Errorf("name: is %q, the resource's is %q", n.GetName(), name)
	}
	return build(m)
}

func (d *Decoder) publishLocked() {
	old := d.store.Load().Destinations
	d.waiting = map[string]string{}
	ready := make(map[string]*config.Destination, len(d.destinations))
	for name, dest := range d.destinations {
		missing := d.missing(dest)
		if missing == "" {
			ready[name] = dest
			continue
		}
		d.waiting[name] = missing
		if prev := old[name]; prev != nil && d.missing(prev) == "" {
			ready[name] = prev
		}
	}
	d.store.Publish(config.NewSnapshot(ready, d.routes, d.clusters))
}

// missing names a resource that dest needs and that has not arrived, "" for none.
func (d *Decoder) missing(dest *config.Destination) string {
	names := []string{dest.Routes}
	for _, t := range dest.Tables {
		names = append(names, t.Routes)
	}
	i := slices.IndexFunc(names, func(n string) bool { return n != "" && d.routes[n] == nil })
	switch {
	case i >= 0:
		return "route configuration " + names[i]
	case dest.Cluster != "" && d.clusters[dest.Cluster] == nil:
		return "cluster " + dest.Cluster
	}
	return ""
}
