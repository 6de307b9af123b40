// Package waypoint is the wire form of what a waypoint is told to serve. One
// small resource per service port replaces a giant listener:
//
//	Destination "shop/cart.shop.svc.cluster.local/80"
//	  ├─ addresses      network/VIP by which a CONNECT names the service
//	  ├─ route_config ► RouteConfiguration "shop/cart.shop.svc.cluster.local/80"
//	  ├─ cluster      ► Cluster "outbound|80||cart.shop.svc.cluster.local"
//	  └─ filters        Envoy messages, packed
//
// The messages are generated from waypoint.proto.
package waypoint

import "strconv"

// TypeURL names Destination resources on the wire.
const TypeURL = "type.googleapis.com/culvert.waypoint.v1.Destination"

// ServiceResource returns the resource name of one port of a service.
func ServiceResource(namespace, hostname string, port uint16) string {
	return namespace + "/" + hostname + "/" + strconv.Itoa(int(port))
}
