package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// NewRequest makes a key (ECDSA P-256) and a PEM certificate request for id as
// upstream's proxies do: empty subject, one critical SAN with the SPIFFE URI.
func NewRequest(id mesh.Identity) (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key for %s: %w", id, err)
	}
	san, err := uriSAN(id)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request for %s: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{san},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request for %s: %w", id, err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// uriSAN encodes the subject alternative name extension (RFC 5280 §4.2.1.6).
// x509 would leave it non-critical in a request.
func uriSAN(id mesh.Identity) (pkix.Extension, error) {
	const uniformResourceIdentifier = 6
	value, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific,
		Tag:   uniformResourceIdentifier,
		Bytes: []byte(id.String()),
	}})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}, err
}

// ParseSVID builds the SVID for id from what a CA answered: PEM texts, the leaf
// first, one intermediate in each of the following, all trusted roots in the
// last. It fails unless the leaf is for id's URI and for key, and has not expired. One
// that is not valid yet is taken: the clock that is off may be ours.
func ParseSVID(id mesh.Identity, key crypto.Signer, chain []string) (*SVID, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("certificate chain has %d elements, want at least a leaf and a root", len(chain))
	}
	last := len(chain) - 1
	var certs []*x509.Certificate
	for i, text := range chain[:last] {
		parsed, err := ParsePEM([]byte(text))
		if err == nil && len(parsed) != 1 {
			err = fmt.Errorf("%d certificates in one element", len(parsed))
		}
		if err != nil {
			return nil, fmt.Errorf("certificate chain element %d: %w", i, err)
		}
		certs = append(certs, parsed[0])
	}
	roots, err := ParsePEM([]byte(chain[last]))
	if err != nil {
		return nil, fmt.Errorf("certificate chain element %d (roots): %w", last, err)
	}
	s, err := newSVID(id, key, certs, roots, nil)
	if err != nil {
		return nil, err
	}
	if now := time.Now(); now.After(s.NotAfter) {
		return nil, fmt.Errorf("certificate expired at %s", s.NotAfter.UTC().Format(time.RFC3339))
	}
	return s, nil
}

// NewSVID builds the SVID for id from its key, its chain (leaf first), the roots
// of its own trust domain, and those of each trust domain that it federates with.
// Unlike a parsed one it takes no peer of any other trust domain, whoever signed
// it. It fails unless the leaf is for id's URI and for key.
func NewSVID(id mesh.Identity, key crypto.Signer, chain, roots []*x509.Certificate, federated map[string][]*x509.Certificate) (*SVID, error) {
	if federated == nil {
		federated = map[string][]*x509.Certificate{}
	}
	return newSVID(id, key, chain, roots, federated)
}

func newSVID(id mesh.Identity, key crypto.Signer, chain, roots []*x509.Certificate, federated map[string][]*x509.Certificate) (*SVID, error) {
	if len(chain) == 0 || len(roots) == 0 {
		return nil, fmt.Errorf("%d certificates and %d roots, want at least one of each", len(chain), len(roots))
	}
	if err := checkLeaf(chain[0], id, key); err != nil {
		return nil, err
	}
	s := &SVID{ID: id, Chain: chain, RootCerts: roots, Federated: federated}
	s.complete(key)
	return s, nil
}

// checkLeaf checks that a CA sent what was asked for.
func checkLeaf(leaf *x509.Certificate, id mesh.Identity, key crypto.Signer) error {
	if len(leaf.URIs) == 0 {
		return fmt.Errorf("certificate carries no URI, want %s", id)
	}
	if got := leaf.URIs[0].String(); got != id.String() {
		return fmt.Errorf("certificate is for %s, want %s", got, id)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return errors.New("certificate is for another key")
	}
	return nil
}

// complete derives what follows from Chain, RootCerts and the key.
func (s *SVID) complete(key crypto.Signer) {
	leaf := s.Chain[0]
	s.Leaf = tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range s.Chain {
		s.Leaf.Certificate = append(s.Leaf.Certificate, c.Raw)
	}
	s.Roots = pool(s.RootCerts)
	s.NotBefore, s.NotAfter = leaf.NotBefore, leaf.NotAfter
	s.Serial = leaf.SerialNumber.String()
	s.verifier = newVerifier(s.Roots)
	if s.Federated != nil {
		s.foreign = make(map[string]*verifier, len(s.Federated))
		for td, roots := range s.Federated {
			s.foreign[td] = newVerifier(pool(roots))
		}
	}
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// ParsePEM parses one or more PEM certificates. Anything else in the text, and a
// text without a certificate, is an error.
func ParsePEM(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("parse PEM: text that is no PEM block")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("parse PEM: block %q, want CERTIFICATE", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse PEM: certificate %d: %w", len(out)+1, err)
		}
		out = append(out, cert)
		rest = bytes.TrimSpace(rest)
	}
	if len(out) == 0 {
		return nil, errors.New("parse PEM: no certificate")
	}
	return out, nil
}

// EncodePEM is the inverse of ParsePEM.
func EncodePEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
