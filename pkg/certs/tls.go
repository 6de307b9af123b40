package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// ALPN is the one protocol that HBONE negotiates.
const ALPN = "h2"

// ServerOptions changes what a server accepts. The zero value accepts clients of
// the server's own trust domain.
type ServerOptions struct {
	TrustDomains []string // accepted client trust domains; empty = the server's own
}

// Profile is what all TLS connections of a program have in common. The zero
// Profile is the mesh's default: TLS 1.3, AES-GCM, and X25519MLKEM768 as the key
// exchange with whoever has it. It is not changed once it is in use.
type Profile struct {
	// TLS12 offers TLS 1.2 as well, with ECDHE and AES-GCM only.
	TLS12 bool
	// PQC accepts no other key exchange than the post-quantum X25519MLKEM768, on
	// which TLS 1.2 cannot agree: that is off then.
	PQC bool
	// Revoked, unless nil, refuses peers with a revoked certificate.
	Revoked *Revocations
}

// ClientTLS is the zero Profile's Client.
func ClientTLS(ctx context.Context, src Source, self mesh.Identity, expect []mesh.Identity) (*tls.Config, error) {
	return Profile{}.Client(ctx, src, self, expect)
}

// ServerTLS is the zero Profile's Server.
func ServerTLS(ctx context.Context, src Source, self mesh.Identity, opt ServerOptions) (*tls.Config, error) {
	return Profile{}.Server(ctx, src, self, opt)
}

// Client returns the configuration for one connection of self to a peer that must
// prove to be one of expect: any of its URI SANs counts, host names do not. An
// empty expect matches nobody. Handshake errors carry reason.IdentityMismatch,
// reason.CertRevoked or reason.TLSFailure.
func (p Profile) Client(ctx context.Context, src Source, self mesh.Identity, expect []mesh.Identity) (*tls.Config, error) {
	svid, err := src.Certificate(ctx, self)
	if err != nil {
		return nil, err
	}
	cfg := p.base()
	// The peer is checked by identity in VerifyConnection. Without a name Go
	// sends no SNI, which is what upstream's ztunnel does.
	cfg.InsecureSkipVerify = true
	// Always present the certificate, whatever CAs the server hints at.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &svid.Leaf, nil
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		path, err := svid.checkServer(state.PeerCertificates, expect)
		if err != nil {
			return err
		}
		return p.Revoked.checkPath(path, Outgoing)
	}
	return cfg, nil
}

// Server returns the configuration for connections to self. It holds the
// certificate of the moment: ask again for each connection, it is cheap.
// Handshake errors carry reason.TrustDomain, reason.CertRevoked or
// reason.TLSFailure.
func (p Profile) Server(ctx context.Context, src Source, self mesh.Identity, opt ServerOptions) (*tls.Config, error) {
	svid, err := src.Certificate(ctx, self)
	if err != nil {
		return nil, err
	}
	domains := opt.TrustDomains
	if len(domains) == 0 {
		domains = svid.trustDomains()
	}
	cfg := p.base()
	cfg.Certificates = []tls.Certificate{svid.Leaf}
	cfg.ClientAuth = tls.RequireAnyClientCert // and then VerifyConnection
	cfg.GetConfigForClient = p.checkHello
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		path, err := svid.checkClient(state.PeerCertificates, domains)
		if err != nil {
			return err
		}
		return p.Revoked.checkPath(path, Incoming)
	}
	return cfg, nil
}

// Key exchanges as upstream's default build has them. Which of them two peers
// take is Go's choice: the hybrid one if both have it.
var (
	exchanges    = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
	exchangesPQC = []tls.CurveID{tls.X25519MLKEM768}
)

// suites13 are the cipher suites of TLS 1.3 that are accepted.
var suites13 = []uint16{tls.TLS_AES_256_GCM_SHA384, tls.TLS_AES_128_GCM_SHA256}

// suites12 are the cipher suites of TLS 1.2 (RFC 5289).
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}

// base is what both sides share.
func (p Profile) base() *tls.Config {
	cfg := &tls.Config{
		NextProtos:                  []string{ALPN},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // large records from the first byte
	}
	p.Limit(cfg)
	return cfg
}

// Limit sets the versions, suites and key exchanges of a configuration.
func (p Profile) Limit(cfg *tls.Config) {
	cfg.MinVersion = tls.VersionTLS13
	if p.tls12() {
		cfg.MinVersion = tls.VersionTLS12
	}
	cfg.CipherSuites = suites12
	cfg.CurvePreferences = exchanges
	if p.PQC {
		cfg.CurvePreferences = exchangesPQC
	}
}

func (p Profile) tls12() bool { return p.TLS12 && !p.PQC }

// checkHello refuses what upstream refuses and Go would not: clients without
// AES-GCM, and clients whose ALPN lacks h2 (Go lets http/1.1 pass). When a client
// has AES and more, Go picks AES on machines that accelerate it.
func (p Profile) checkHello(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	refuse := func(why string) (*tls.Config, error) {
		return nil, reason.New(reason.TLSFailure, "accept client", hello.Conn.RemoteAddr().String(), errors.New(why))
	}
	suites := suites13
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		if suites = suites12; !p.tls12() {
			return refuse("client does not offer TLS version 1.3")
		}
	}
	if !slices.ContainsFunc(hello.CipherSuites, func(s uint16) bool { return slices.Contains(suites, s) }) {
		return refuse("client offers no AES-GCM cipher suite")
	}
	if len(hello.SupportedProtos) > 0 && !slices.Contains(hello.SupportedProtos, ALPN) {
		return refuse("client offers application protocols without " + ALPN)
	}
	return nil, nil
}

// checkServer is the client's check of a server. It returns the path from the
// server's leaf to a root.
func (s *SVID) checkServer(chain []*x509.Certificate, expect []mesh.Identity) ([]*x509.Certificate, error) {
	return s.check("server", chain, x509.ExtKeyUsageServerAuth, func(claimed []mesh.Identity) error {
		for _, id := range claimed {
			if slices.Contains(expect, id) {
				return nil
			}
		}
		return reason.Newf(reason.IdentityMismatch, "verify server", presented(chain), "want %s", oneOf(expect))
	})
}

// checkClient is the server's check of a client.
func (s *SVID) checkClient(chain []*x509.Certificate, trustDomains []string) ([]*x509.Certificate, error) {
	return s.check("client", chain, x509.ExtKeyUsageClientAuth, func(claimed []mesh.Identity) error {
		for _, id := range claimed {
			if slices.Contains(trustDomains, id.TrustDomain) {
				return nil
			}
		}
		return reason.Newf(reason.TrustDomain, "verify client", presented(chain), "want %s", strings.Join(trustDomains, " or "))
	})
}

// check verifies a peer's chain with the roots that count for it, and then who it
// claims to be.
func (s *SVID) check(who string, chain []*x509.Certificate, usage x509.ExtKeyUsage, accept func([]mesh.Identity) error) ([]*x509.Certificate, error) {
	v, err := s.verifierFor(chain)
	if err != nil {
		return nil, reason.New(reason.TrustDomain, "verify "+who, presented(chain), err)
	}
	path, err := v.verify(chain, usage, time.Now())
	if err != nil {
		return nil, reason.New(reason.TLSFailure, "verify "+who, presented(chain), err)
	}
	return path, accept(identities(chain[0]))
}

// verifierFor chooses the roots for a peer. With federation it is the trust domain
// of the peer's one identity that decides (SPIFFE X509-SVID §2: exactly one URI),
// so that no authority can vouch for another domain's identities.
func (s *SVID) verifierFor(chain []*x509.Certificate) (*verifier, error) {
	if s.foreign == nil || len(chain) == 0 {
		return s.verifier, nil
	}
	ids := identities(chain[0])
	if len(ids) != 1 || len(chain[0].URIs) != 1 {
		return nil, fmt.Errorf("%d URIs in the certificate, want one identity", len(chain[0].URIs))
	}
	if ids[0].TrustDomain == s.ID.TrustDomain {
		return s.verifier, nil
	}
	if v := s.foreign[ids[0].TrustDomain]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("%s does not federate with trust domain %s", s.ID, ids[0].TrustDomain)
}

// trustDomains are those whose peers s can verify.
func (s *SVID) trustDomains() []string {
	return append([]string{s.ID.TrustDomain}, slices.Sorted(maps.Keys(s.Federated))...)
}

// identities returns the URI SANs of leaf that are identities, in their order.
func identities(leaf *x509.Certificate) (ids []mesh.Identity) {
	for _, uri := range leaf.URIs {
		if id, err := mesh.ParseIdentity(uri.String()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// presented names a peer by what its leaf claims.
func presented(chain []*x509.Certificate) string {
	if len(chain) == 0 || len(chain[0].URIs) == 0 {
		return "(no URI in certificate)"
	}
	uris := make([]string, len(chain[0].URIs))
	for i, u := range chain[0].URIs {
		uris[i] = u.String()
	}
	return strings.Join(uris, ",")
}

// oneOf lists identities for an error message, without flooding a log line.
func oneOf(ids []mesh.Identity) string {
	const most = 3
	if len(ids) == 0 {
		return "one of an empty set"
	}
	var names []string
	for _, id := range ids[:min(most, len(ids))] {
		names = append(names, id.String())
	}
	text := strings.Join(names, " or ")
	if n := len(ids) - most; n > 0 {
		text += fmt.Sprintf(" or %d more", n)
	}
	return text
}

// PeerIdentity returns the first URI SAN of the peer's leaf that is an identity.
// The chain was verified during the handshake.
func PeerIdentity(state tls.ConnectionState) (mesh.Identity, bool) {
	if len(state.PeerCertificates) == 0 {
		return mesh.Identity{}, false
	}
	return LeafIdentity(state.PeerCertificates[0])
}

// LeafIdentity returns the first URI SAN of leaf that is an identity.
func LeafIdentity(leaf *x509.Certificate) (mesh.Identity, bool) {
	if ids := identities(leaf); len(ids) > 0 {
		return ids[0], true
	}
	return mesh.Identity{}, false
}
