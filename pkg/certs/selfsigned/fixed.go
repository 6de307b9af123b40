package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"math/big"
	"time"
)

// Fixed returns an authority whose root and key are the same everywhere and known
// to everybody who has this program: any process can forge any identity. It
// exists for FAKE_CA, so that proxies without a control plane trust each other in
// tests. It says so loudly, to slog's default logger unless WithLog is given.
func Fixed(opts ...Option) *Authority {
	a := newAuthority("", append([]Option{WithLog(slog.Default())}, opts...))
	a.log.Error("FAKE CERTIFICATE AUTHORITY: the root key is public and every identity can be forged; for tests only")
	r := fixedRoot()
	a.keep(&state{roots: []root{{signer: r, added: r.cert.NotBefore}}, intermediate: r})
	return a
}

// fixedRoot derives the root from constants alone. Its life of a century means
// that the authority never rotates.
func fixedRoot() *signer {
	scalar := sha256.Sum256([]byte("culvert: this certificate authority is for tests and protects nothing"))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		panic(err) // the scalar is a constant in range
	}
	tmpl := caTemplate("", 1)
	tmpl.Subject.CommonName = "culvert test root, insecure"
	tmpl.SerialNumber = big.NewInt(1)
	tmpl.NotBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	tmpl.NotAfter = tmpl.NotBefore.AddDate(100, 0, 0)
	// Without a source of randomness the signature is deterministic (RFC 6979).
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err) // all inputs are constants
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &signer{cert, key}
}
