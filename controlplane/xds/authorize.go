package xds

import (
	"context"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/token"
)

// Authenticator says who a bearer token belongs to. *token.Verifier is one.
type Authenticator interface {
	Authenticate(ctx context.Context, bearer string) (*token.Claims, error)
}

// Kinds says which types each kind of proxy may ask for. The kind is the first
// part of a node id.
type Kinds map[string][]string

// kindWaypoint is the kind whose clients see what their gateway serves.
const kindWaypoint = "waypoint"

// Authorize returns a Config.Authorize that checks the bearer token of the call.
// A proxy must be of the namespace that its node metadata claims, and of the
// service account, if it claims one. A waypoint is the gateway that its service
// account is named like, and no other.
func Authorize(auth Authenticator, kinds Kinds) func(context.Context, *corev3.Node) (Client, error) {
	return func(ctx context.Context, node *corev3.Node) (Client, error) {
		claims, err := authenticate(ctx, auth)
		if err != nil {
			return Client{}, err
		}
		kind, _, _ := strings.Cut(node.GetId(), "~")
		types, ok := kinds[kind]
		if !ok {
			return Client{}, status.Errorf(codes.PermissionDenied, "node id %q: proxies of kind %q are not served", node.GetId(), kind)
		}
		c := Client{Kind: kind, Node: field(node, "NODE_NAME"), types: types}
		if ns := field(node, "NAMESPACE"); ns != claims.Namespace {
			return Client{}, status.Errorf(codes.PermissionDenied, "node metadata NAMESPACE is %q, the token's is %q", ns, claims.Namespace)
		}
		if sa := field(node, "SERVICE_ACCOUNT"); sa != "" && sa != claims.ServiceAccount.Name {
			return Client{}, status.Errorf(codes.PermissionDenied, "node metadata SERVICE_ACCOUNT is %q, the token's is %q", sa, claims.ServiceAccount.Name)
		}
		if kind == kindWaypoint {
			if gw := field(node, "GATEWAY_NAME"); gw != "" && gw != claims.ServiceAccount.Name {
				return Client{}, status.Errorf(codes.PermissionDenied, "node metadata GATEWAY_NAME is %q, the token's service account is %q", gw, claims.ServiceAccount.Name)
			}
			c.Scope = Scope(claims.Namespace, claims.ServiceAccount.Name)
		}
		return c, nil
	}
}

// Scope is the scope of a gateway's resources.
func Scope(namespace, gateway string) string { return namespace + "/" + gateway }

func authenticate(ctx context.Context, auth Authenticator) (*token.Claims, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		bearer, ok := strings.CutPrefix(v, "Bearer ")
		if !ok {
			continue
		}
		claims, err := auth.Authenticate(ctx, bearer)
		if err != nil {
			return nil, status.Errorf(codes.Unauthenticated, "token: %v", err)
		}
		return claims, nil
	}
	return nil, status.Error(codes.Unauthenticated, "no bearer token")
}

func field(node *corev3.Node, name string) string {
	return node.GetMetadata().GetFields()[name].GetStringValue()
}
