package gateway

import known "sigs.k8s.io/gateway-api/pkg/features"

// features are what a GatewayClass of waypoints says it supports: what the
// conformance suite asks of a mesh, profiles MESH-HTTP and MESH-GRPC.
func features() []string {
	var names []string
	for _, n := range []known.FeatureName{
		known.SupportMesh, known.SupportMeshClusterIPMatching, known.SupportMeshConsumerRoute,
		known.SupportMeshHTTPRouteRewritePath, known.SupportMeshHTTPRouteSchemeRedirect,
		known.SupportMeshHTTPRouteRedirectPort, known.SupportMeshHTTPRouteRedirectPath,
		known.SupportMeshHTTPRouteBackendRequestHeaderModification, known.SupportMeshHTTPRouteQueryParamMatching,
		known.SupportMeshHTTPRouteNamedRouteRule,
		known.SupportHTTPRoute, known.SupportGRPCRoute, known.SupportReferenceGrant,
	} {
		names = append(names, string(n))
	}
	return names
}
