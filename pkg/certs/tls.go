package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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

// ClientTLS returns the configuration for one connection of self to a peer that
// must prove to be one of expect: any of its URI SANs counts, host names do not.
// An empty expect matches nobody. Handshake errors carry reason.IdentityMismatch
// or reason.TLSFailure.
func ClientTLS(ctx context.Context, src Source, self mesh.Identity, expect []mesh.Identity) (*tls.Config, error) {
	svid, err := src.Certificate(ctx, self)
	if err != nil {
		return nil, err
	}
	cfg := baseTLS()
	// The peer is checked by identity in VerifyConnection. Without a name Go
	// sends no SNI, which is what upstream's ztunnel does.
	cfg.InsecureSkipVerify = true
	// Always present the certificate, whatever CAs the server hints at.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &svid.Leaf, nil
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		return svid.checkServer(state.PeerCertificates, expect)
	}
	return cfg, nil
}

// ServerTLS returns the configuration for connections to self. It holds the
// certificate of the moment: ask again for each connection, it is cheap.
// Handshake errors carry reason.TrustDomain or reason.TLSFailure.
func ServerTLS(ctx context.Context, src Source, self mesh.Identity, opt ServerOptions) (*tls.Config, error) {
	svid, err := src.Certificate(ctx, self)
	if err != nil {
		return nil, err
	}
	domains := opt.TrustDomains
	if len(domains) == 0 {
		domains = []string{svid.ID.TrustDomain}
	}
	cfg := baseTLS()
	cfg.Certificates = []tls.Certificate{svid.Leaf}
	cfg.ClientAuth = tls.RequireAnyClientCert // and then VerifyConnection
	cfg.GetConfigForClient = checkHello
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		return svid.checkClient(state.PeerCertificates, domains)
	}
	return cfg, nil
}

// baseTLS is what both sides share. Curve preferences stay Go's own, so that the
// hybrid X25519MLKEM768 is used whenever the peer has it.
func baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{ALPN},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // large records from the first byte
	}
}

// checkHello refuses what upstream refuses and Go would not: clients without
// AES-GCM, and clients whose ALPN lacks h2 (Go lets http/1.1 pass). When a client
// has AES and more, Go picks AES on machines that accelerate it.
func checkHello(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	refuse := func(why string) (*tls.Config, error) {
		return nil, reason.New(reason.TLSFailure, "accept client", hello.Conn.RemoteAddr().String(), errors.New(why))
	}
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		return refuse("client does not offer TLS version 1.3")
	}
	if !slices.Contains(hello.CipherSuites, tls.TLS_AES_128_GCM_SHA256) &&
		!slices.Contains(hello.CipherSuites, tls.TLS_AES_256_GCM_SHA384) {
		return refuse("client offers no AES-GCM cipher suite")
	}
	if len(hello.SupportedProtos) > 0 && !slices.Contains(hello.SupportedProtos, ALPN) {
		return refuse("client offers application protocols without " + ALPN)
	}
	return nil, nil
}

// checkServer is the client's check of a server.
func (s *SVID) checkServer(chain []*x509.Certificate, expect []mesh.Identity) error {
	if err := s.verifier.verify(chain, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		return reason.New(reason.TLSFailure, "verify server", presented(chain), err)
	}
	for _, uri := range chain[0].URIs {
		id, err := mesh.ParseIdentity(uri.String())
		if err == nil && slices.Contains(expect, id) {
			return nil
		}
	}
	return reason.Newf(reason.IdentityMismatch, "verify server", presented(chain), "want %s", oneOf(expect))
}

// checkClient is the server's check of a client.
func (s *SVID) checkClient(chain []*x509.Certificate, trustDomains []string) error {
	if err := s.verifier.verify(chain, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
		return reason.New(reason.TLSFailure, "verify client", presented(chain), err)
	}
	for _, uri := range chain[0].URIs {
		id, err := mesh.ParseIdentity(uri.String())
		if err == nil && slices.Contains(trustDomains, id.TrustDomain) {
			return nil
		}
	}
	return reason.Newf(reason.TrustDomain, "verify client", presented(chain), "want %s", strings.Join(trustDomains, " or "))
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
	for _, uri := range leaf.URIs {
		if id, err := mesh.ParseIdentity(uri.String()); err == nil {
			return id, true
		}
	}
	return mesh.Identity{}, false
}
