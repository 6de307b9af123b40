package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// testCA makes a root and a leaf below it, for clients only.
func testCA(t testing.TB, life time.Duration) (root, leaf *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now, NotAfter: now.Add(10 * life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	issue := func(tmpl, parent *x509.Certificate) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root = issue(ca, ca)
	return root, issue(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now, NotAfter: now.Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, root)
}

// TestRememberedChains: remembering changes no verdict.
func TestRememberedChains(t *testing.T) {
	t.Parallel()
	root, leaf := testCA(t, time.Hour)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	v := newVerifier(pool)
	chain := []*x509.Certificate{leaf}
	now := time.Now().Add(time.Minute)
	for range 2 {
		if _, err := v.verify(chain, x509.ExtKeyUsageClientAuth, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.seen) != 1 {
		t.Fatalf("%d chains remembered", len(v.seen))
	}
	for name, verify := range map[string]func() error{
		"expired":       func() error { return verdict(v, chain, x509.ExtKeyUsageClientAuth, now.Add(2*time.Hour)) },
		"not yet valid": func() error { return verdict(v, chain, x509.ExtKeyUsageClientAuth, now.Add(-2*time.Hour)) },
		"other usage":   func() error { return verdict(v, chain, x509.ExtKeyUsageServerAuth, now) },
		"other roots": func() error {
			return verdict(newVerifier(x509.NewCertPool()), chain, x509.ExtKeyUsageClientAuth, now)
		},
		"forged": func() error {
			_, forged := testCA(t, time.Hour)
			return verdict(v, []*x509.Certificate{forged, root}, x509.ExtKeyUsageClientAuth, now)
		},
		"empty": func() error { return verdict(v, nil, x509.ExtKeyUsageClientAuth, now) },
	} {
		if verify() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(v.seen) != 1 {
		t.Errorf("a failure was remembered: %d chains", len(v.seen))
	}
}

func verdict(v *verifier, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	_, err := v.verify(chain, usage, now)
	return err
}

func TestRememberedChainsAreBounded(t *testing.T) {
	t.Parallel()
	v := newVerifier(x509.NewCertPool())
	for i := range 3 * maxSeen {
		v.remember([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, verified{})
	}
	if len(v.seen) > maxSeen {
		t.Errorf("%d chains remembered", len(v.seen))
	}
}

func BenchmarkVerify(b *testing.B) {
	root, leaf := testCA(b, time.Hour)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	v := newVerifier(pool)
	chain := []*x509.Certificate{leaf}
	now := time.Now().Add(time.Minute)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			clear(v.seen)
			_, _ = v.verify(chain, x509.ExtKeyUsageClientAuth, now)
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			_, _ = v.verify(chain, x509.ExtKeyUsageClientAuth, now)
		}
	})
}
