package certs

import (
	"context"
	"crypto/tls"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

type verifier struct{}

// ServerOptions changes what a server accepts. The zero value accepts clients of
// the server's own trust domain.
type ServerOptions struct {
	TrustDomains []string // accepted client trust domains; empty = the server's own
}

// ClientTLS returns the configuration for one connection of self to a peer that
// must prove to be one of expect. An empty expect matches nobody.
func ClientTLS(ctx context.Context, src Source, self mesh.Identity, expect []mesh.Identity) (*tls.Config, error) {
	panic("skeleton")
}

// ServerTLS returns the configuration for connections to self.
func ServerTLS(ctx context.Context, src Source, self mesh.Identity, opt ServerOptions) (*tls.Config, error) {
	panic("skeleton")
}

// PeerIdentity returns the first URI SAN of the peer's leaf that is an identity.
func PeerIdentity(state tls.ConnectionState) (mesh.Identity, bool) { panic("skeleton") }
