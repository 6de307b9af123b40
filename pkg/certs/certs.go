// Package certs gives every identity its certificate and every TLS connection
// its configuration.
//
//	ClientTLS, ServerTLS ──▶ Source ◀── Cache ──▶ Issuer ◀── caclient, selfsigned
//	(who do I talk to?)       │           │         (key, CSR, signing call)
//	                          │           └ one request per identity, renewal at
//	                          ▼             half life, at most 8 calls at once
//	                        SVID: leaf + intermediates + key + trusted roots
//
// Package spire's Issuer is a Streamer: it renews by itself, and the cache takes
// what it delivers.
//
// Certificates are X.509-SVIDs: the leaf's URI SAN is the SPIFFE identity. The
// roots that a workload trusts came with its own certificate, so a new root takes
// effect identity by identity, at renewal.
//
// An SVID is immutable once published. Source, Issuer and Cache are safe for
// concurrent use.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// SVID is a certificate for one identity, with its key and the roots against
// which its holder checks peers. Immutable.
type SVID struct {
	ID        mesh.Identity
	Leaf      tls.Certificate     // leaf and intermediates, private key, parsed leaf
	Chain     []*x509.Certificate // leaf first, then intermediates
	Roots     *x509.CertPool
	RootCerts []*x509.Certificate // what Roots holds
	NotBefore time.Time
	NotAfter  time.Time
	Serial    string // of the leaf, decimal

	// Federated has the roots of each foreign trust domain whose peers are
	// accepted, and then Roots count for ID's own trust domain only. Nil: Roots
	// count for every trust domain, as with an IstioCertificateService.
	Federated map[string][]*x509.Certificate

	verifier *verifier
	foreign  map[string]*verifier // of Federated
}

// Source yields the certificate to use for an identity right now.
type Source interface {
	// Certificate returns the certificate for id: at once if there is a valid
	// one, else after the one request that all callers share. Errors carry
	// reason.NoCertificate.
	Certificate(ctx context.Context, id mesh.Identity) (*SVID, error)
}

// Issuer obtains a new certificate, with a new key, for an identity.
type Issuer interface {
	Issue(ctx context.Context, id mesh.Identity) (*SVID, error)
}

// Streamer is an Issuer that renews by itself: once asked for an identity it
// delivers every later certificate as well, until it is released.
type Streamer interface {
	Issuer
	// Deliver names the receiver of later certificates. It is called once, before
	// Issue. The Streamer holds no lock of its own while it calls receive.
	Deliver(receive func(*SVID))
	// Release ends what Issue began. It must not wait for a receiver.
	Release(id mesh.Identity)
}

// Fixed is a Source that holds certificates made beforehand.
type Fixed map[mesh.Identity]*SVID
