package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/token"
)

// TestWaypointsAccount: a waypoint is the gateway that its account is named like, or
// one that says that it runs as that account.
func TestWaypointsAccount(t *testing.T) {
	t.Parallel()
	accounts := func(namespace, gateway string) string {
		return map[string]string{"shop/edge": "shared"}[namespace+"/"+gateway]
	}
	for _, c := range []struct {
		account, gateway, scope string
	}{
		{"edge", "edge", "shop/edge"},
		{"edge", "", "shop/edge"},
		{"shared", "edge", "shop/edge"},
		{"shared", "other", ""},
		{"thief", "edge", ""},
	} {
		claims := &token.Claims{Namespace: "shop"}
		claims.ServiceAccount.Name = c.account
		node := &corev3.Node{Id: "waypoint~10.0.0.1~pod.shop~shop.svc.cluster.local", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": structpb.NewStringValue("shop"), "GATEWAY_NAME": structpb.NewStringValue(c.gateway)}}}
		got, err := authorize(claims, node, Kinds{"waypoint": nil}, accounts)
		if got.Scope != c.scope || (err == nil) != (c.scope != "") {
			t.Errorf("account %s as gateway %q: scope %q, error %v; want %q", c.account, c.gateway, got.Scope, err, c.scope)
		}
	}
}
