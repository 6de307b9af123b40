package ca

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// livePod is one pod of an API server.
type livePod struct{ uid, account, node string }

// pods are the pods of an API server, by namespace/name.
type podTable map[string]livePod

func (p podTable) Pod(namespace, name string) (uid, serviceAccount, node string, ok bool) {
	l, ok := p[namespace+"/"+name]
	return l.uid, l.account, l.node, ok
}

func (p podTable) Runs(node, namespace, serviceAccount string) bool {
	for key, l := range p {
		if ns, _, _ := strings.Cut(key, "/"); ns == namespace && l.account == serviceAccount && l.node == node {
			return true
		}
	}
	return false
}

// TestNodeOfLivePod: a node's proxy is the pod that its token was made for, on the
// node where that pod runs, and nothing else.
func TestNodeOfLivePod(t *testing.T) {
	t.Parallel()
	there := podTable{
		"mesh/ztunnel-1": {"uid-1", "ztunnel", "node-1"},
		"mesh/unplaced":  {"uid-2", "ztunnel", ""},
		"shop/cart":      {"uid-3", "cart", "node-1"},
		"shop/far":       {"uid-4", "far", "node-2"},
	}
	s := New(Config{Rule: there, Pods: there, TrustedNodeAccounts: []string{"mesh/ztunnel"}})
	claims := func(pod, uid, node string) *token.Claims {
		return &token.Claims{Namespace: "mesh", ServiceAccount: token.Ref{Name: "ztunnel"}, Pod: token.Ref{Name: pod, UID: uid}, Node: token.Ref{Name: node}}
	}
	other := claims("ztunnel-1", "uid-1", "node-1")
	other.ServiceAccount.Name = "waypoint"
	for name, c := range map[string]struct {
		caller  *token.Claims
		account string
		want    string // "" = it may
	}{
		"its own pod":                          {claims("ztunnel-1", "uid-1", "node-1"), "cart", ""},
		"a server that tells no node":          {claims("ztunnel-1", "uid-1", ""), "cart", ""},
		"a pod of another node":                {claims("ztunnel-1", "uid-1", "node-1"), "far", "no pod of shop/far on node node-1"},
		"a pod of the name that came after it": {claims("ztunnel-1", "uid-0", "node-1"), "cart", "is another one now"},
		"a pod that is gone":                   {claims("ztunnel-2", "uid-9", "node-1"), "cart", "mesh/ztunnel-2 is not there"},
		"no pod":                               {claims("", "", "node-1"), "cart", "bound to no pod"},
		"not placed yet":                       {claims("unplaced", "uid-2", ""), "cart", "on no node yet"},
		"the token is of another node":         {claims("ztunnel-1", "uid-1", "node-2"), "far", "is on node node-1, the token's on node-2"},
		"the pod is of another account":        {other, "cart", "is of service account ztunnel, the token's is waypoint"},
	} {
		t.Run(name, func(t *testing.T) {
			err := s.onNode(c.caller, mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: c.account})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestLag: what another replica knew first is waited for, and not for ever.
func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := podTable{"mesh/ztunnel-1": {"uid-1", "ztunnel", "node-1"}}
		s := New(Config{Rule: there, Pods: there, TrustedNodeAccounts: []string{"mesh/ztunnel"}, Lag: time.Second})
		caller := &token.Claims{Namespace: "mesh", ServiceAccount: token.Ref{Name: "ztunnel"}, Pod: token.Ref{Name: "ztunnel-1", UID: "uid-1"}}
		req := &ca.IstioCertificateRequest{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			ca.ImpersonatedIdentity: structpb.NewStringValue("spiffe://cluster.local/ns/shop/sa/cart")}}}
		begin := time.Now()
		if _, err := s.authorize(t.Context(), caller, req); err == nil || time.Since(begin) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		s.cfg.Rule = later{time.Now().Add(300 * time.Millisecond)}
		if _, err := s.authorize(t.Context(), caller, req); err != nil {
			t.Error(err)
		}
	})
}

// later is a rule that learns of every pod at a time.
type later struct{ at time.Time }

func (l later) Runs(_, _, _ string) bool { return !time.Now().Before(l.at) }
