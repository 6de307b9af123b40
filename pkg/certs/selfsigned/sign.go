package selfsigned

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// SignCSR signs a PEM certificate request for id. Only the request's public key
// and its proof of possession count: names and extensions in it are ignored. ttl
// is 0 for DefaultTTL, else at least MinTTL and at most MaxTTL; a certificate
// never outlives its issuer. The result is PEM: leaf, intermediates, and last all
// trusted roots together.
func (a *Authority) SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) ([]string, error) {
	csr, err := ParseCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return nil, fmt.Errorf("sign certificate for %s: validity %s is not within %s and %s", id, ttl, MinTTL, MaxTTL)
	}
	if _, err := mesh.ParseIdentity(id.String()); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	m, err := a.loaded()
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", id, err)
	}
	leaf, err := m.signer.sign(workload(id), csr.PublicKey, ttl, time.Now())
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", id, err)
	}
	chain := []string{string(certs.EncodePEM(leaf))}
	for _, c := range m.chain {
		chain = append(chain, string(certs.EncodePEM(c)))
	}
	return append(chain, string(m.bundle())), nil
}

// ErrCSR is in the chain of errors that are the request's fault.
var ErrCSR = errors.New("certificate request")

// ParseCSR parses one PEM certificate request and checks its signature and the
// strength of its key.
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: not a PEM certificate request", ErrCSR)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: bad signature: %w", ErrCSR, err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return csr, nil
}

// checkKey accepts the kinds of keys that TLS 1.3 peers can verify.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return errors.New("ECDSA key on P-224, want P-256, P-384 or P-521")
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits, want 2048 to 8192", n)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of unsupported kind %T", pub)
	}
	return nil
}

// ServerCertificate returns a server certificate for DNS names and addresses, as
// the control plane presents on its own port. ttl is bounded as in SignCSR.
func (a *Authority) ServerCertificate(names []string, addrs []netip.Addr, ttl time.Duration) (*tls.Certificate, error) {
	if len(names)+len(addrs) == 0 {
		return nil, errors.New("sign server certificate: no name and no address")
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return nil, fmt.Errorf("sign server certificate: validity %s is not within %s and %s", ttl, MinTTL, MaxTTL)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("sign server certificate: %w", err)
	}
	tmpl := &x509.Certificate{
		DNSNames:    names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, addr := range addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(addr.Unmap().AsSlice()))
	}
	m, err := a.loaded()
	if err != nil {
		return nil, fmt.Errorf("sign server certificate: %w", err)
	}
	leaf, err := m.signer.sign(tmpl, key.Public(), ttl, time.Now())
	if err != nil {
		return nil, fmt.Errorf("sign server certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range m.chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// sign fills in serial and validity and signs tmpl for pub.
func (s *signer) sign(tmpl *x509.Certificate, pub crypto.PublicKey, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	tmpl.SerialNumber = newSerial()
	tmpl.NotBefore = now.Add(-backdate)
	tmpl.NotAfter = now.Add(ttl)
	if tmpl.NotAfter.After(s.cert.NotAfter) {
		tmpl.NotAfter = s.cert.NotAfter
	}
	if !now.Before(tmpl.NotAfter) {
		return nil, fmt.Errorf("issuing certificate expired at %s", s.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.cert, pub, s.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns 127 random bits (RFC 5280 §4.1.2.2: positive, at most 20 octets).
func newSerial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n.Add(n, big.NewInt(1))
}

// newRoot makes a self-signed root.
func newRoot(now time.Time) (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	tmpl := caTemplate("culvert root", 1)
	root := &signer{cert: tmpl, key: key}
	tmpl.NotAfter = now.Add(RootLife)
	if root.cert, err = root.sign(tmpl, key.Public(), RootLife, now); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return root, nil
}

// newIntermediate makes an intermediate signed by the root s.
func (s *signer) newIntermediate(now time.Time) (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make intermediate key: %w", err)
	}
	cert, err := s.sign(caTemplate("culvert intermediate", 0), key.Public(), IntermediateLife, now)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	return &signer{cert, key}, nil
}

// caTemplate describes a CA with room for maxPath more below it. The name carries
// random bits so that successive CAs are told apart by chain building and people.
func caTemplate(name string, maxPath int) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{
			Organization: []string{"culvert"},
			CommonName:   fmt.Sprintf("%s %x", name, newSerial().Bytes()[:4]),
		},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            maxPath,
		MaxPathLenZero:        maxPath == 0,
	}
}
