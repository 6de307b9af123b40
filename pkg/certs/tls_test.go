package certs_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

func authority(t testing.TB) *selfsigned.Authority {
	t.Helper()
	a, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func fixed(t testing.TB, a *selfsigned.Authority, ids ...mesh.Identity) certs.Fixed {
	t.Helper()
	f := certs.Fixed{}
	for _, id := range ids {
		svid, err := a.Issue(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		f[id] = svid
	}
	return f
}

// handshake joins client and server by a TCP connection and returns both states.
func handshake(t testing.TB, client, server *tls.Config) (c, s tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		err = conn.HandshakeContext(context.Background())
		s = conn.ConnectionState()
		if err == nil {
			_, err = io.WriteString(conn, "x")
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	clientErr = conn.HandshakeContext(context.Background())
	c = conn.ConnectionState()
	if clientErr == nil { // in TLS 1.3 the server's verdict comes after the client's
		_, clientErr = conn.Read(make([]byte, 1))
	}
	raw.Close()
	return c, s, clientErr, <-done
}

func configs(t testing.TB, clientSrc, serverSrc certs.Source, client, server mesh.Identity, expect ...mesh.Identity) (*tls.Config, *tls.Config) {
	t.Helper()
	c, err := certs.ClientTLS(context.Background(), clientSrc, client, expect)
	if err != nil {
		t.Fatal(err)
	}
	s, err := certs.ServerTLS(context.Background(), serverSrc, server, certs.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	front, cart := identity("frontend"), identity("cart")
	src := fixed(t, authority(t), front, cart)
	c, s := configs(t, src, src, front, cart, identity("other"), cart)
	var hello *tls.ClientHelloInfo
	check := s.GetConfigForClient
	s.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return check(h)
	}
	for range 2 { // the second time with a remembered chain
		client, server, clientErr, serverErr := handshake(t, c, s)
		if clientErr != nil || serverErr != nil {
			t.Fatal(clientErr, serverErr)
		}
		if id, ok := certs.PeerIdentity(client); !ok || id != cart {
			t.Errorf("client sees %s", id)
		}
		if id, ok := certs.PeerIdentity(server); !ok || id != front {
			t.Errorf("server sees %s", id)
		}
		if client.Version != tls.VersionTLS13 || client.NegotiatedProtocol != "h2" || client.CurveID != tls.X25519MLKEM768 || client.DidResume {
			t.Errorf("version %x, ALPN %q, curve %s, resumed %v", client.Version, client.NegotiatedProtocol, client.CurveID, client.DidResume)
		}
		if name := tls.CipherSuiteName(client.CipherSuite); !strings.Contains(name, "AES") {
			t.Errorf("cipher suite %s", name)
		}
		if hello.ServerName != "" {
			t.Errorf("SNI %q was sent", hello.ServerName)
		}
	}
	if _, ok := certs.PeerIdentity(tls.ConnectionState{}); ok {
		t.Error("an identity out of nothing")
	}
}

// TestRefusals lists peers that must be refused, by whom, and with which words.
func TestRefusals(t *testing.T) {
	t.Parallel()
	front, cart := identity("frontend"), identity("cart")
	foreign := mesh.Identity{TrustDomain: "other.local", Namespace: "shop", ServiceAccount: "frontend"}
	a := authority(t)
	src := fixed(t, a, front, cart, foreign)
	stranger := fixed(t, authority(t), front, cart)
	for name, test := range map[string]struct {
		clientSrc, serverSrc certs.Source
		client               mesh.Identity
		expect               []mesh.Identity
		change               func(c, s *tls.Config)
		byClient             bool
		reason               reason.Reason
		text                 string
	}{
		"wrong identity":      {src, src, front, []mesh.Identity{front}, nil, true, reason.IdentityMismatch, "want " + front.String()},
		"empty set":           {src, src, front, nil, nil, true, reason.IdentityMismatch, "empty set"},
		"foreign server root": {src, stranger, front, []mesh.Identity{cart}, nil, true, reason.TLSFailure, "unknown authority"},
		"foreign client root": {certs.Fixed{front: mixed(t, stranger[front], src[front])}, src, front, []mesh.Identity{cart}, nil, false, reason.TLSFailure, "unknown authority"},
		"trust domain":        {src, src, foreign, []mesh.Identity{cart}, nil, false, reason.TrustDomain, "want cluster.local"},
		"no client certificate": {src, src, front, []mesh.Identity{cart}, func(c, _ *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		}, false, reason.Internal, "certificate"},
		"TLS 1.2": {src, src, front, []mesh.Identity{cart}, func(c, _ *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}, false, reason.TLSFailure, "version 1.3"},
		"other ALPN": {src, src, front, []mesh.Identity{cart}, func(c, _ *tls.Config) { c.NextProtos = []string{"http/1.1"} }, false, reason.TLSFailure, "application protocols"},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := configs(t, test.clientSrc, test.serverSrc, test.client, cart, test.expect...)
			if test.change != nil {
				test.change(c, s)
			}
			_, _, clientErr, serverErr := handshake(t, c, s)
			err := serverErr
			if test.byClient {
				err = clientErr
			}
			if clientErr == nil || serverErr == nil {
				t.Fatalf("client %v, server %v", clientErr, serverErr)
			}
			if reason.Of(err) != test.reason || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v (%s), want %q", err, reason.Of(err), test.text)
			}
		})
	}
}

// mixed is what a peer from elsewhere would present who trusts our roots.
func mixed(t *testing.T, leaf, roots *certs.SVID) *certs.SVID {
	t.Helper()
	var chain []string
	for _, c := range leaf.Chain {
		chain = append(chain, string(certs.EncodePEM(c)))
	}
	signer := leaf.Leaf.PrivateKey.(crypto.Signer)
	svid, err := certs.ParseSVID(leaf.ID, signer, append(chain, string(certs.EncodePEM(roots.RootCerts...))))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// TestExpiredPeersAreRefused: also when their chain was accepted before.
func TestExpiredPeersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t)
		front, cart := identity("frontend"), identity("cart")
		long := fixed(t, a, front, cart)
		svid, err := a.IssueFor(front, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		short := certs.Fixed{front: svid}
		if err := shake(configs(t, short, long, front, cart, cart)); err != nil {
			t.Fatal(err)
		}
		c, s := configs(t, short, long, front, cart, cart)
		s2c, c2s := configs(t, long, short, cart, front, front)
		time.Sleep(2 * time.Hour)
		for who, err := range map[string]error{"client": shake(c, s), "server": shake(s2c, c2s)} {
			if reason.Of(err) != reason.TLSFailure || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), front.String()) {
				t.Errorf("expired %s: %v", who, err)
			}
		}
		if _, err := certs.ClientTLS(context.Background(), short, front, nil); reason.Of(err) != reason.NoCertificate {
			t.Errorf("own certificate expired: %v", err)
		}
	})
}

// shake joins both in memory and returns the first error that carries a reason.
func shake(client, server *tls.Config) error {
	a, b := patientPipe()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(a, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	conn := tls.Client(b, client)
	err := conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	b.Close()
	serverErr := <-done
	if r := reason.Of(serverErr); r != reason.None && r != reason.Internal {
		return serverErr
	}
	return err
}

// patientPipe is net.Pipe whose writers do not wait: one end may refuse a handshake
// while the other still writes.
func patientPipe() (a, b net.Conn) {
	a, b = net.Pipe()
	return newPatient(a), newPatient(b)
}

type patient struct {
	net.Conn
	out   chan []byte
	close sync.Once
}

func newPatient(c net.Conn) *patient {
	p := &patient{Conn: c, out: make(chan []byte, 64)}
	go func() {
		for b := range p.out {
			_, _ = c.Write(b)
		}
		_ = c.Close()
	}()
	return p
}

func (p *patient) Write(b []byte) (int, error) {
	p.out <- bytes.Clone(b)
	return len(b), nil
}

func (p *patient) Close() error {
	p.close.Do(func() { close(p.out) })
	return nil
}

func TestServerAcceptsListedTrustDomains(t *testing.T) {
	t.Parallel()
	foreign := mesh.Identity{TrustDomain: "other.local", Namespace: "shop", ServiceAccount: "frontend"}
	src := fixed(t, authority(t), foreign, identity("cart"))
	c, _ := configs(t, src, src, foreign, identity("cart"), identity("cart"))
	s, err := certs.ServerTLS(context.Background(), src, identity("cart"), certs.ServerOptions{TrustDomains: []string{"x", "other.local"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, clientErr, serverErr := handshake(t, c, s); clientErr != nil || serverErr != nil {
		t.Error(clientErr, serverErr)
	}
}

func TestServerRefusesClientsWithoutAES(t *testing.T) {
	t.Parallel()
	src := fixed(t, authority(t), identity("cart"))
	_, s := configs(t, src, src, identity("cart"), identity("cart"))
	local, remote := net.Pipe()
	defer local.Close()
	defer remote.Close()
	hello := &tls.ClientHelloInfo{CipherSuites: []uint16{tls.TLS_CHACHA20_POLY1305_SHA256}, SupportedVersions: []uint16{tls.VersionTLS13}, Conn: local}
	if _, err := s.GetConfigForClient(hello); reason.Of(err) != reason.TLSFailure {
		t.Errorf("ChaCha only: %v", err)
	}
	hello.CipherSuites = append(hello.CipherSuites, tls.TLS_AES_128_GCM_SHA256)
	if _, err := s.GetConfigForClient(hello); err != nil {
		t.Error(err)
	}
}

func TestConfigNeedsACertificate(t *testing.T) {
	t.Parallel()
	if _, err := certs.ClientTLS(context.Background(), certs.Fixed{}, identity("x"), nil); reason.Of(err) != reason.NoCertificate {
		t.Error(err)
	}
	if _, err := certs.ServerTLS(context.Background(), certs.Fixed{}, identity("x"), certs.ServerOptions{}); reason.Of(err) != reason.NoCertificate {
		t.Error(err)
	}
}

func TestParseSVIDRefusals(t *testing.T) {
	t.Parallel()
	a := authority(t)
	id := identity("cart")
	key, csr, err := certs.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _, err := certs.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignCSR(csr, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certs.ParseSVID(id, key, chain); err != nil {
		t.Fatal(err)
	}
	twoRoots := append(append([]string{}, chain[:2]...), chain[2]+string(authority(t).RootsPEM()))
	if svid, err := certs.ParseSVID(id, key, twoRoots); err != nil || len(svid.RootCerts) != 2 {
		t.Errorf("two roots in the last element: %v", err)
	}
	for want, parse := range map[string]func() (*certs.SVID, error){
		"want at least a leaf and a root":    func() (*certs.SVID, error) { return certs.ParseSVID(id, key, chain[:1]) },
		"want " + identity("other").String(): func() (*certs.SVID, error) { return certs.ParseSVID(identity("other"), key, chain) },
		"another key":                        func() (*certs.SVID, error) { return certs.ParseSVID(id, otherKey, chain) },
		"no certificate":                     func() (*certs.SVID, error) { return certs.ParseSVID(id, key, []string{chain[0], ""}) },
		"2 certificates in one element":      func() (*certs.SVID, error) { return certs.ParseSVID(id, key, []string{chain[0] + chain[1], chain[2]}) },
		"no PEM block":                       func() (*certs.SVID, error) { return certs.ParseSVID(id, key, []string{chain[0], "junk"}) },
		"carries no URI":                     func() (*certs.SVID, error) { return certs.ParseSVID(id, key, chain[1:]) },
	} {
		if _, err := parse(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestRequestFormat(t *testing.T) {
	t.Parallel()
	_, text, err := certs.NewRequest(identity("cart"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if csr.Subject.String() != "" || len(csr.URIs) != 1 || csr.URIs[0].String() != identity("cart").String() || csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("subject %q, URIs %v, %s", csr.Subject, csr.URIs, csr.SignatureAlgorithm)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
		t.Errorf("extensions %+v", csr.Extensions)
	}
}

func TestLoadRoots(t *testing.T) {
	t.Parallel()
	a := authority(t)
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	if err := os.WriteFile(path, a.RootsPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{path, string(a.RootsPEM())} {
		if pool, err := certs.LoadRoots(spec); err != nil || !pool.Equal(a.Roots()) {
			t.Errorf("%.30q: %v", spec, err)
		}
	}
	if _, err := certs.LoadRoots("SYSTEM"); err != nil {
		t.Error(err)
	}
	for _, spec := range []string{path + ".no", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"} {
		if _, err := certs.LoadRoots(spec); err == nil {
			t.Errorf("%.30q was accepted", spec)
		}
	}
}

func TestChannelTLS(t *testing.T) {
	t.Parallel()
	a := authority(t)
	cert, err := a.ServerCertificate([]string{"controlplane.local"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2"}}
	roots := func() (*x509.CertPool, error) { return a.Roots(), nil }
	other := authority(t)
	errNone := errors.New("no root file")
	for name, test := range map[string]struct {
		host, alt string
		roots     func() (*x509.CertPool, error)
		want      string
	}{
		"name":         {"controlplane.local", "", roots, ""},
		"address":      {"127.0.0.1", "", roots, ""},
		"alternative":  {"istiod", "controlplane.local", roots, ""},
		"wrong name":   {"istiod", "", roots, "not istiod"},
		"wrong root":   {"127.0.0.1", "", func() (*x509.CertPool, error) { return other.Roots(), nil }, "unknown authority"},
		"no root file": {"127.0.0.1", "", func() (*x509.CertPool, error) { return nil, errNone }, "no root file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err, _ := handshake(t, certs.ChannelTLS(test.host, test.alt, test.roots), server)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func FuzzParsePEM(f *testing.F) {
	a := authority(f)
	f.Add(a.RootsPEM())
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		parsed, err := certs.ParsePEM(text)
		if err != nil {
			return
		}
		again, err := certs.ParsePEM(certs.EncodePEM(parsed...))
		if err != nil || len(again) != len(parsed) {
			t.Errorf("%d certificates came back as %d: %v", len(parsed), len(again), err)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	front, cart := identity("frontend"), identity("cart")
	src := fixed(b, authority(b), front, cart)
	for b.Loop() {
		c, s := configs(b, src, src, front, cart, cart)
		if _, _, clientErr, serverErr := handshake(b, c, s); clientErr != nil || serverErr != nil {
			b.Fatal(clientErr, serverErr)
		}
	}
}

// TestChannelProfile: the policy holds for the way to the control plane, too.
func TestChannelProfile(t *testing.T) {
	t.Parallel()
	a := authority(t)
	cert, err := a.ServerCertificate([]string{"cp"}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	roots := func() (*x509.CertPool, error) { return a.Roots(), nil }
	for _, c := range []struct {
		profile certs.Profile
		server  *tls.Config
		ok      bool
	}{
		{certs.Profile{}, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, true},
		{certs.Profile{PQC: true}, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, false},
		{certs.Profile{PQC: true}, &tls.Config{}, true},
		{certs.Profile{}, &tls.Config{MaxVersion: tls.VersionTLS12}, false},
		{certs.Profile{TLS12: true}, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
	} {
		c.server.Certificates, c.server.NextProtos = []tls.Certificate{*cert}, []string{"h2"}
		_, _, clientErr, _ := handshake(t, c.profile.Channel("cp", "", roots), c.server)
		if (clientErr == nil) != c.ok {
			t.Errorf("%+v: %v, want success %v", c.profile, clientErr, c.ok)
		}
	}
}
