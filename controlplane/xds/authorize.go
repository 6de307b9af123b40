package xds

import (
	"cmp"
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

// authorize says who the bearer of a token is, given the node that it claims to
// be. A proxy must be of the namespace that its node metadata names, and of the
// service account, if it names one. A waypoint is the gateway that its service
// account is named like, or another one that runs as that account, which account
// says. Errors are gRPC status errors.
func authorize(claims *token.Claims, node *corev3.Node, kinds Kinds, account func(namespace, gateway string) string) (Client, error) {
	refuse := func(format string, args ...any) (Client, error) {
		return Client{}, status.Errorf(codes.PermissionDenied, format, args...)
	}
	own := claims.ServiceAccount.Name
	kind, _, _ := strings.Cut(node.GetId(), "~")
	types, ok := kinds[kind]
	if !ok {
		return refuse("node id %q: proxies of kind %q are not served", node.GetId(), kind)
	}
	if ns := field(node, "NAMESPACE"); ns != claims.Namespace {
		return refuse("node metadata NAMESPACE is %q, the token's is %q", ns, claims.Namespace)
	}
	if sa := field(node, "SERVICE_ACCOUNT"); sa != "" && sa != own {
		return refuse("node metadata SERVICE_ACCOUNT is %q, the token's is %q", sa, own)
	}
	c := Client{Kind: kind, Node: field(node, "NODE_NAME"), types: types}
	if kind == kindWaypoint {
		gw := cmp.Or(field(node, "GATEWAY_NAME"), own)
		if gw != own && (account == nil || account(claims.Namespace, gw) != own) {
			return refuse("node metadata GATEWAY_NAME is %q, the token's service account is %q", gw, own)
		}
		c.Scope = Scope(claims.Namespace, gw)
	}
	return c, nil
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
