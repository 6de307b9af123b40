// Package selfsigned is a certificate authority that makes its own root.
package selfsigned

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Authority signs certificates. It implements certs.Issuer.
type Authority struct{}

// Option changes an Authority from its defaults.
type Option func(*Authority)

// WithLog sets the logger.
func WithLog(log *slog.Logger) Option { return func(*Authority) {} }

// WithTTL sets the validity of certificates made by Issue; default 24 h.
func WithTTL(ttl time.Duration) Option { return func(*Authority) {} }

// NewAuthority opens the authority kept in dir, or makes one there.
func NewAuthority(dir string, opts ...Option) (*Authority, error) { panic("skeleton") }

// Ephemeral returns an authority with a new root that is kept nowhere.
func Ephemeral(opts ...Option) (*Authority, error) { panic("skeleton") }

// Fixed returns an authority whose root and key are the same everywhere and known
// to everybody: for tests (FAKE_CA) only.
func Fixed(opts ...Option) *Authority { panic("skeleton") }

// Run rotates intermediates and roots until ctx ends.
func (a *Authority) Run(ctx context.Context) error { panic("skeleton") }

// SignCSR signs a PEM certificate request for id, which alone decides the SAN.
// The result is PEM: leaf, intermediates, and last all trusted roots together.
func (a *Authority) SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) ([]string, error) {
	panic("skeleton")
}

// Issue implements certs.Issuer.
func (a *Authority) Issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	panic("skeleton")
}

// ServerCertificate returns a server certificate for DNS names and addresses.
func (a *Authority) ServerCertificate(names []string, addrs []netip.Addr, ttl time.Duration) (*tls.Certificate, error) {
	panic("skeleton")
}

// RootsPEM returns the trusted roots as PEM, the content of root-cert.pem.
func (a *Authority) RootsPEM() []byte { panic("skeleton") }

// Roots returns the trusted roots.
func (a *Authority) Roots() *x509.CertPool { panic("skeleton") }

// RotateRoot makes a new root and trusts it beside the present one.
func (a *Authority) RotateRoot() error { panic("skeleton") }
