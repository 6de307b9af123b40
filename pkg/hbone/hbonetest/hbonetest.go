// Package hbonetest gives tests the two ends of a tunnel: certificates with
// SPIFFE identities, TLS configurations, connected pairs of sockets, and checks
// that nothing was left behind.
//
//	ca := hbonetest.NewCA(t)
//	cfg := ca.Client(t, source, destination)    // and ca.Server(t, destination)
//	a, b := hbonetest.TCPPair(t)                // a socket of the proxy, one of the program
//
// Everything here is safe for concurrent use.
package hbonetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// CA signs certificates for tests. They are valid from 1999 on, so that they
// hold within testing/synctest too.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// Identity returns the test identity of that name: its namespace is "test".
func Identity(name string) mesh.Identity {
	return mesh.Identity{TrustDomain: mesh.DefaultTrustDomain, Namespace: "test", ServiceAccount: name}
}

var (
	notBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
)

// NewCA makes a root.
func NewCA(t testing.TB) *CA {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca := &CA{key: newKey(t), pool: x509.NewCertPool()}
	ca.cert = ca.sign(t, tmpl, tmpl, &ca.key.PublicKey)
	ca.pool.AddCert(ca.cert)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *CA) sign(t testing.TB, tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Certificate issues a certificate for id.
func (ca *CA) Certificate(t testing.TB, id mesh.Identity) tls.Certificate {
	t.Helper()
	return ca.CertificateUntil(t, id, notAfter)
}

// CertificateUntil issues a certificate for id that ends at end.
func (ca *CA) CertificateUntil(t testing.TB, id mesh.Identity, end time.Time) tls.Certificate {
	t.Helper()
	key := newKey(t)
	leaf := ca.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: notBefore, NotAfter: end,
		URIs:        []*url.URL{id.URL()},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, ca.cert, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// Server returns the configuration of a server that presents self and accepts
// every client of the same CA.
func (ca *CA) Server(t testing.TB, self mesh.Identity) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{ca.Certificate(t, self)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: ca.pool,
	}
}

// Client returns the configuration of a client that presents self and accepts
// the identities in expect.
func (ca *CA) Client(t testing.TB, self mesh.Identity, expect ...mesh.Identity) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates:       []tls.Certificate{ca.Certificate(t, self)},
		InsecureSkipVerify: true, // the name does not count: VerifyConnection checks chain and identity
		VerifyConnection:   ca.verifier(expect),
	}
}

func (ca *CA) verifier(expect []mesh.Identity) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			return reason.New(reason.TLSFailure, "verify peer", "", err)
		}
		for _, uri := range leaf.URIs {
			if id, err := mesh.ParseIdentity(uri.String()); err == nil && slices.Contains(expect, id) {
				return nil
			}
		}
		return reason.New(reason.IdentityMismatch, "verify peer", "", errors.New("not an expected identity"))
	}
}

// Listen listens on loopback until the test ends.
func Listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// TCPPair returns the two ends of a connection, closed when the test ends.
func TCPPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln := Listen(t)
	defer ln.Close()
	a, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

// Until waits for a condition that becomes true by itself, and fails the test
// when it has not after a time that no working program needs.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("still waiting for: %s", what)
		}
	}
}

// Goroutines counts the goroutines with that text in their stack.
func Goroutines(match string) int {
	buf := make([]byte, 8<<20)
	n := 0
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, match) {
			n++
		}
	}
	return n
}

// FDs counts the process's open file descriptors.
func FDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
