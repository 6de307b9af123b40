package selfsigned

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// RevocationList returns the PEM of a revocation list (RFC 5280 §5) with the serial
// numbers of certificates that the present issuing certificate signed. It replaces
// every earlier one and is valid for life.
func (a *Authority) RevocationList(life time.Duration, serials ...*big.Int) ([]byte, error) {
	m, err := a.loaded()
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	issuer := m.signer
	now := time.Now()
	tmpl := &x509.RevocationList{
		Number:     big.NewInt(now.UnixNano()), // grows with each list
		ThisUpdate: now.Add(-backdate),
		NextUpdate: now.Add(life),
	}
	for _, serial := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, issuer.cert, issuer.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}
