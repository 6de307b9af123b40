package app

import (
	"context"
	"crypto/tls"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// TestAnotherAuthority: where somebody else signs for the proxies, this program does
// not, though it still has an authority for its own port; and waypoints are told.
func TestAnotherAuthority(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]codes.Code{"": codes.Unauthenticated, "ca.example.org:443": codes.Unimplemented} {
		p := newPlane(t, t.TempDir(), func(c *Config) { c.CAAddress = address })
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: p.roots, MinVersion: tls.VersionTLS13})))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err = ca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &ca.IstioCertificateRequest{})
		if got := status.Code(err); got != want {
			t.Errorf("other authority %q: %v, want %v", address, err, want)
		}
		if got := p.app.gatewayOptions().CAAddress; got != address {
			t.Errorf("waypoints are told of %q, want %q", got, address)
		}
	}
}
