package certs

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// LoadRoots returns the roots that spec names: a file of PEM blocks, the literal
// PEM text, or "SYSTEM" for the machine's own.
func LoadRoots(spec string) (*x509.CertPool, error) {
	if spec == "SYSTEM" {
		return x509.SystemCertPool()
	}
	text := []byte(spec)
	if RootsFile(spec) {
		var err error
		if text, err = os.ReadFile(spec); err != nil {
			return nil, fmt.Errorf("load roots: %w", err)
		}
	}
	parsed, err := ParsePEM(text)
	if err != nil {
		return nil, fmt.Errorf("load roots: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range parsed {
		pool.AddCert(c)
	}
	return pool, nil
}

// RootsFile reports whether spec, as LoadRoots takes it, names a file.
func RootsFile(spec string) bool { return spec != "SYSTEM" && !strings.Contains(spec, "-----BEGIN ") }
