//go:build kube

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// sign asks the mesh's authority for a certificate of who ("" = of the token's own
// account) and returns the answer's code.
func sign(t *testing.T, bearer, who string) (codes.Code, string) {
	t.Helper()
	root, err := os.ReadFile(the.dir("state", "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	conn, err := grpc.NewClient(controlIP+":15012", grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	req := &ca.IstioCertificateRequest{ValidityDuration: 3600,
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	if who != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{ca.ImpersonatedIdentity: structpb.NewStringValue(who)}}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+bearer)
	_, err = ca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, req)
	return status.Code(err), status.Convert(err).Message()
}

// TestTokens: the API server says whose a token is, and the authority for whom it
// may ask: a node's ztunnel for the pods of its node, everybody else for themselves.
func TestTokens(t *testing.T) {
	s := newSpace(t, "tokens", true)
	p := newPod(s.name, "here", "node1", "pause")
	s.pods(p)
	const pods = "spiffe://cluster.local/ns/tokens/sa/default"
	bearer := func(account, node, audience string) string {
		t.Helper()
		token, err := the.api.token(t.Context(), meshNamespace, account, "ztunnel-"+node, audience)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, c := range []struct {
		name, token, who string
		refused          []string // words of the control plane's log; nil = it signs
	}{
		{"of the pod's node", bearer("ztunnel", "node1", "istio-ca"), pods, nil},
		{"of another node", bearer("ztunnel", "node2", "istio-ca"), pods, []string{"pod=ztunnel-node2", "no pod of tokens/default on node node2"}},
		{"for another audience", bearer("ztunnel", "node1", "somebody-else"), pods, []string{"token review", "somebody-else", "target audiences"}},
		{"of another account", bearer("other", "node1", "istio-ca"), pods, []string{"caller=" + meshNamespace + "/other", "no trusted node account"}},
		{"of another account, for itself", bearer("other", "node1", "istio-ca"), "", nil},
		{"made up", "eyJhbGciOiJub25lIn0.e30.", pods, []string{"token review", "not accepted: invalid bearer token"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			words := append([]string{"certificate refused"}, c.refused...)
			before := len(the.control.logged(words...))
			code, text := sign(t, c.token, c.who)
			if c.refused == nil {
				if code != codes.OK {
					t.Errorf("%v: %s", code, text)
				}
				return
			}
			if code != codes.Unauthenticated {
				t.Errorf("%v: %s; want it refused", code, text)
			}
			eventually(t, "the control plane says why", func() error {
				if len(the.control.logged(words...)) == before {
					return fmt.Errorf("no line with %q", words)
				}
				return nil
			})
		})
	}
}
