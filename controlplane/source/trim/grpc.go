package trim

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// GRPCRoute trims a route.
func GRPCRoute(r *gatewayv1.GRPCRoute, m source.Meta) *source.GRPCRoute {
	return &source.GRPCRoute{Meta: m, Spec: r.Spec}
}
