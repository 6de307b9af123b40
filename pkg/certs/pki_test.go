package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// testCA is an authority by hand, independent of package selfsigned.
type testCA struct {
	cert   *x509.Certificate
	key    crypto.Signer
	parent *testCA // nil of a root
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t testing.TB, name string, parent *testCA) *testCA {
	t.Helper()
	ca := &testCA{key: newKey(t), parent: parent}
	ca.cert = sign(t, parent, ca.key.Public(), ca.key, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	return ca
}

// sign fills in what all certificates have. A nil parent means signed by own.
func sign(t testing.TB, parent *testCA, pub crypto.PublicKey, own crypto.Signer, tmpl *x509.Certificate) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = serial
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	issuer, key := tmpl, own
	if parent != nil {
		issuer, key = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leaf certifies key for the identities.
func (ca *testCA) leaf(t testing.TB, key crypto.Signer, ids ...mesh.Identity) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, id := range ids {
		tmpl.URIs = append(tmpl.URIs, id.URL())
	}
	return sign(t, ca, key.Public(), nil, tmpl)
}

// chain is a leaf and what is between it and the root.
func (ca *testCA) chain(leaf *x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{leaf}
	for ; ca.parent != nil; ca = ca.parent {
		chain = append(chain, ca.cert)
	}
	return chain
}

func (ca *testCA) root() *testCA {
	for ca.parent != nil {
		ca = ca.parent
	}
	return ca
}

// svid certifies id as an IstioCertificateService would.
func (ca *testCA) svid(t testing.TB, id mesh.Identity) *certs.SVID {
	t.Helper()
	return ca.svidFor(t, newKey(t), id)
}

func (ca *testCA) svidFor(t testing.TB, key crypto.Signer, id mesh.Identity) *certs.SVID {
	t.Helper()
	var texts []string
	for _, c := range ca.chain(ca.leaf(t, key, id)) {
		texts = append(texts, string(certs.EncodePEM(c)))
	}
	svid, err := certs.ParseSVID(id, key, append(texts, string(certs.EncodePEM(ca.root().cert))))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func rsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// crl is the authority's list of revoked certificates.
func (ca *testCA) crl(t testing.TB, change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}
