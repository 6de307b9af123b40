package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ChannelTLS is the zero Profile's Channel.
func ChannelTLS(host, alt string, roots func() (*x509.CertPool, error)) *tls.Config {
	return Profile{}.Channel(host, alt, roots)
}

// Channel returns the configuration for connections to the control plane, which
// proves itself by its host name rather than by an identity. host is the name or
// address that is dialled; alt, unless empty, is accepted as well. roots is called
// at each handshake, so a replaced root file takes effect at the next connection.
func (p Profile) Channel(host, alt string, roots func() (*x509.CertPool, error)) *tls.Config {
	cfg := &tls.Config{
		NextProtos: []string{ALPN},
		ServerName: host,
		// Checked in VerifyConnection, against the roots of the moment.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			pool, err := roots()
			if err != nil {
				return err
			}
			return verifyHost(state.PeerCertificates, pool, host, alt)
		},
	}
	p.Limit(cfg)
	return cfg
}

// verifyHost checks a server's chain and that its leaf is for host or alt.
func verifyHost(chain []*x509.Certificate, roots *x509.CertPool, host, alt string) error {
	if len(chain) == 0 {
		return errors.New("control plane presented no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	if err != nil {
		return fmt.Errorf("verify control plane %s: %w", host, err)
	}
	if err = chain[0].VerifyHostname(host); err != nil && alt != "" {
		err = chain[0].VerifyHostname(alt)
	}
	if err != nil {
		return fmt.Errorf("verify control plane %s: %w", host, err)
	}
	return nil
}
