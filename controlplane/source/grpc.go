package source

import gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

// KindGRPCRoute is the kind of a GRPCRoute.
const KindGRPCRoute Kind = "GRPCRoute"

// GRPCRoute is the Gateway API's.
type GRPCRoute struct {
	Meta
	Spec gatewayv1.GRPCRouteSpec
}

// Key implements Object.
func (r *GRPCRoute) Key() Key { return Key{KindGRPCRoute, r.Namespace, r.Name} }
