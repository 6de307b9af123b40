// Package waypoint turns results into the resources that a waypoint reads about
// what its Gateway serves: Destination, and the Envoy routes and clusters that it
// names. Every one is for that waypoint alone.
//
// Pure functions, safe for concurrent use.
package waypoint

import (
	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/xds"
)

// Type URLs of Envoy's resources.
const (
	RouteTypeURL   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterTypeURL = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// Resources returns the resources of one result. A cluster that several ports
// lead to is returned once.
func Resources(out compile.Output) []xds.Resource {
	var list []xds.Resource
	seen := map[string]bool{}
	for _, s := range out.Serving {
		scope := xds.Scope(s.Gateway.Namespace, s.Gateway.Name)
		list = append(list, xds.NewResource(s.Name, s.Destination, nil, scope))
		for _, r := range s.Routes {
			list = append(list, xds.NewResource(r.GetName(), r, nil, scope))
		}
		for _, c := range s.Clusters {
			if !seen[c.GetName()] {
				seen[c.GetName()] = true
				list = append(list, xds.NewResource(c.GetName(), c, nil, scope))
			}
		}
	}
	return list
}
