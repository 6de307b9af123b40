package selfsigned

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Material is what an authority signs with: a key, its certificate, the
// certificates between that and a root, and all roots that are trusted. Immutable.
type Material struct {
	signer *signer
	chain  []*x509.Certificate // sent after a leaf: the signer's own first; no root
	roots  []*x509.Certificate // the one above chain first
}

// Files is an authority made by somebody else, as PEM.
type Files struct {
	Cert  []byte // of what signs; certificates above it may follow
	Key   []byte // of Cert: PKCS #1, PKCS #8 or SEC 1
	Chain []byte // the rest of the way up; may repeat Cert, and may hold the root
	Roots []byte // every root that is trusted
}

// maxCerts bounds what is searched for a way to a root.
const maxCerts = 64

// ParseMaterial reads an authority and makes sure that what it signs at now for
// workloads of the trust domain will be accepted by who trusts the roots.
func ParseMaterial(f Files, trustDomain string, now time.Time) (*Material, error) {
	own, err := certs.ParsePEM(f.Cert)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	key, err := parseKey(f.Key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	roots, err := certs.ParsePEM(f.Roots)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	above := own[1:]
	if len(bytes.TrimSpace(f.Chain)) > 0 {
		more, err := certs.ParsePEM(f.Chain)
		if err != nil {
			return nil, fmt.Errorf("chain: %w", err)
		}
		above = append(above[:len(above):len(above)], more...)
	}
	if len(above)+len(roots) > maxCerts {
		return nil, fmt.Errorf("%d certificates, at most %d are searched", len(above)+len(roots), maxCerts)
	}
	s := &signer{own[0], key}
	if err := s.check(now); err != nil {
		return nil, err
	}
	m, err := s.climb(above, roots, now)
	if err != nil {
		return nil, err
	}
	return m, m.try(trustDomain, now)
}

// check makes sure that s may sign at all.
func (s *signer) check(now time.Time) error {
	name := s.cert.Subject.String()
	switch {
	case !belongs(s.key, s.cert):
		return fmt.Errorf("the private key does not belong to the signing certificate %q", name)
	case !s.cert.BasicConstraintsValid || !s.cert.IsCA:
		return fmt.Errorf("the signing certificate %q is not one of an authority (basic constraints: CA is not true)", name)
	case s.cert.KeyUsage != 0 && s.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the signing certificate %q may not sign certificates (key usage)", name)
	}
	if err := checkKey(s.cert.PublicKey); err != nil {
		return fmt.Errorf("signing certificate %q: %w", name, err)
	}
	return valid(s.cert, "signing certificate", now)
}

func valid(c *x509.Certificate, what string, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("the %s %q expired at %s", what, c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("the %s %q is valid from %s only", what, c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// belongs reports whether key is that of cert.
func belongs(key crypto.Signer, cert *x509.Certificate) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(cert.PublicKey)
}

// climb finds the shortest way from s to one of the roots.
func (s *signer) climb(above, roots []*x509.Certificate, now time.Time) (*Material, error) {
	m := &Material{signer: s, roots: distinct(roots)}
	if i := slices.IndexFunc(m.roots, s.cert.Equal); i >= 0 {
		m.first(i)
		return m, valid(s.cert, "root", now)
	}
	pool, trusted := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range above {
		pool.AddCert(c)
	}
	for _, c := range m.roots {
		trusted.AddCert(c)
	}
	ways, err := s.cert.Verify(x509.VerifyOptions{Roots: trusted, Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("no way from the signing certificate %q to one of the %d roots: %w", s.cert.Subject, len(m.roots), err)
	}
	way := slices.MinFunc(ways, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	m.chain = way[:len(way)-1]
	m.first(slices.IndexFunc(m.roots, way[len(way)-1].Equal))
	return m, nil
}

// first puts the i-th root first.
func (m *Material) first(i int) {
	root := m.roots[i]
	m.roots = slices.Insert(slices.Delete(m.roots, i, i+1), 0, root)
}

func distinct(in []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range in {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// try signs a certificate as for a workload and verifies it as its peers do: names
// and uses that an authority above may have excluded show only there.
func (m *Material) try(trustDomain string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	id := mesh.Identity{TrustDomain: trustDomain, Namespace: "default", ServiceAccount: "default"}
	leaf, err := m.signer.sign(workload(id), key.Public(), MinTTL, now)
	if err != nil {
		return fmt.Errorf("sign with %q: %w", m.signer.cert.Subject, err)
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range m.roots {
		roots.AddCert(c)
	}
	for _, c := range m.chain {
		above.AddCert(c)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
		if err != nil {
			return fmt.Errorf("a certificate for %s, signed with %q, would not be accepted: %w", id, m.signer.cert.Subject, err)
		}
	}
	return nil
}

// workload is what a certificate of id says.
func workload(id mesh.Identity) *x509.Certificate {
	return &x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// bundle returns the roots as PEM.
func (m *Material) bundle() []byte { return certs.EncodePEM(m.roots...) }

// Equal reports whether m and o sign and trust the same.
func (m *Material) Equal(o *Material) bool {
	same := func(a, b *x509.Certificate) bool { return a.Equal(b) }
	return o != nil && m.signer.cert.Equal(o.signer.cert) &&
		slices.EqualFunc(m.chain, o.chain, same) && slices.EqualFunc(m.roots, o.roots, same)
}

// Trusts reports whether o's root is among m's.
func (m *Material) Trusts(o *Material) bool { return slices.ContainsFunc(m.roots, o.roots[0].Equal) }

// Name returns the signing certificate's subject.
func (m *Material) Name() string { return m.signer.cert.Subject.String() }

// Expiry returns when the root above the signing certificate expires, and when
// the first of the certificates on the way there does.
func (m *Material) Expiry() (root, chain time.Time) {
	root, chain = m.roots[0].NotAfter, m.signer.cert.NotAfter
	for _, c := range m.chain {
		if c.NotAfter.Before(chain) {
			chain = c.NotAfter
		}
	}
	return root, chain
}

// parseKey reads a private key in any of the forms in which tools write them.
// Errors never quote it.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("no PEM block of a private key")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PARAMETERS": // openssl writes them before the key
			continue
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("it is encrypted; store it without a passphrase")
		default:
			return nil, fmt.Errorf("PEM block %q, want PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("PEM block %q does not parse", block.Type) // the parser's words could tell of the content
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of kind %T cannot sign", key)
		}
		return s, nil
	}
}
