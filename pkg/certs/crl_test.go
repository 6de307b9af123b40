package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// profiles are a client's and a server's that know the same lists.
func revoking(t *testing.T, lists ...[]byte) (*certs.Revocations, certs.Profile) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca-crl.pem")
	replace(t, path, lists...)
	r := certs.NewRevocations(certs.RevocationConfig{Path: path})
	if err := r.Load(); err != nil {
		t.Fatal(err)
	}
	return r, certs.Profile{Revoked: r}
}

// replace writes a file as a whole, as a careful writer does.
func replace(t *testing.T, path string, parts ...[]byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// meet is a handshake of front with cart.
func meet(t *testing.T, client, server certs.Profile, front, cart *certs.SVID) error {
	t.Helper()
	src := certs.Fixed{front.ID: front, cart.ID: cart}
	return shake(profiled(t, client, server, src, front, cart))
}

func profiled(t *testing.T, client, server certs.Profile, src certs.Source, front, cart *certs.SVID) (c, s *tls.Config) {
	t.Helper()
	c, err := client.Client(context.Background(), src, front.ID, []mesh.Identity{cart.ID})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = server.Server(context.Background(), src, cart.ID, certs.ServerOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, s
}

// TestRevocation lists what revokes a peer and what does not. Every case is tried
// by a client and by a server.
func TestRevocation(t *testing.T) {
	t.Parallel()
	root := newCA(t, "root", nil)
	middle := newCA(t, "middle", root)
	front, cart := middle.svid(t, identity("frontend")), middle.svid(t, identity("cart"))
	namesake := newCA(t, "middle", nil) // another key under the same name
	stranger := newCA(t, "stranger", nil)
	expired := func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }
	both := []*x509.Certificate{front.Chain[0], cart.Chain[0]}
	for name, test := range map[string]struct {
		lists   [][]byte
		revoked bool
	}{
		"the leaf":                {[][]byte{middle.crl(t, nil, both...)}, true},
		"the intermediate":        {[][]byte{root.crl(t, nil, middle.cert)}, true},
		"by the second list":      {[][]byte{root.crl(t, nil), middle.crl(t, nil, both...)}, true},
		"by a list that expired":  {[][]byte{middle.crl(t, expired, both...)}, true},
		"others":                  {[][]byte{middle.crl(t, nil, middle.svid(t, identity("other")).Chain[0]), root.crl(t, nil)}, false},
		"by a namesake":           {[][]byte{namesake.crl(t, nil, both...)}, false},
		"by another authority":    {[][]byte{stranger.crl(t, nil, both...), root.crl(t, nil, both...)}, false},
		"the root itself":         {[][]byte{root.crl(t, nil, root.cert)}, false},
		"unknown to its own list": {[][]byte{root.crl(t, nil)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, knowing := revoking(t, test.lists...)
			for who, err := range map[string]error{
				"verify server": nil, "verify client": nil,
			} {
				if who == "verify server" {
					err = meet(t, knowing, certs.Profile{}, front, cart)
				} else {
					err = meet(t, certs.Profile{}, knowing, front, cart)
				}
				if !test.revoked && err != nil {
					t.Errorf("%s: %v", who, err)
				}
				if test.revoked && (reason.Of(err) != reason.CertRevoked || reason.Of(err).Flag() != "CERT_REVOKED" ||
					!strings.Contains(err.Error(), "serial")) {
					t.Errorf("%s: %v, want a revoked certificate", who, err)
				}
			}
		})
	}
}

// TestRevokedNamesake: a leaf that carries its authority's name is not for that a
// root, which nobody can revoke.
func TestRevokedNamesake(t *testing.T) {
	t.Parallel()
	root := newCA(t, "root", nil)
	key, id := newKey(t), identity("cart")
	leaf := sign(t, root, key.Public(), nil, &x509.Certificate{
		Subject: root.cert.Subject, URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	cart, err := certs.NewSVID(id, key, []*x509.Certificate{leaf}, []*x509.Certificate{root.cert}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, knowing := revoking(t, root.crl(t, nil, leaf))
	if err := meet(t, knowing, certs.Profile{}, root.svid(t, identity("frontend")), cart); reason.Of(err) != reason.CertRevoked {
		t.Errorf("at the handshake: %v", err)
	}
	if err := r.Check([]*x509.Certificate{leaf, root.cert}, certs.Incoming); reason.Of(err) != reason.CertRevoked {
		t.Errorf("of an open connection: %v", err)
	}
}

// TestRevocationWithoutRoom: that no more authorities can be remembered weakens the
// checks to come and not that of the handshake.
func TestRevocationWithoutRoom(t *testing.T) {
	t.Parallel()
	root := newCA(t, "root", nil)
	front, cart := root.svid(t, identity("frontend")), root.svid(t, identity("cart"))
	namesake := newCA(t, "root", nil)
	for name, test := range map[string]struct {
		by   *testCA
		want reason.Reason
	}{"its authority": {root, reason.CertRevoked}, "a namesake": {namesake, reason.None}} {
		r, knowing := revoking(t, test.by.crl(t, nil, cart.Chain[0]))
		certs.FillIssuers(r, namesake.cert)
		if err := meet(t, knowing, certs.Profile{}, front, cart); reason.Of(err) != test.want {
			t.Errorf("revoked by %s, at the handshake: %v", name, err)
		}
	}
}

// TestRevocationOfOpenConnections: what a handshake let pass is found when a list
// comes later, although only the presented chain is known then.
func TestRevocationOfOpenConnections(t *testing.T) {
	t.Parallel()
	root := newCA(t, "root", nil)
	middle := newCA(t, "middle", root)
	front, cart := middle.svid(t, identity("frontend")), middle.svid(t, identity("cart"))
	path := filepath.Join(t.TempDir(), "ca-crl.pem")
	replace(t, path, root.crl(t, nil))

	var loads, failures, rejected atomic.Int64
	r := certs.NewRevocations(certs.RevocationConfig{
		Path: path, Settle: 20 * time.Millisecond,
		Rejected: func(d certs.Direction) {
			if d == certs.Incoming {
				rejected.Add(1)
			}
		},
		Untracked: func(certs.Direction) { t.Error("a connection is not tracked") },
		Loaded: func(_ int, err error) {
			loads.Add(1)
			if err != nil {
				failures.Add(1)
			}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the first list", func() bool { return loads.Load() == 1 })
	if err := meet(t, certs.Profile{}, certs.Profile{Revoked: r}, front, cart); err != nil {
		t.Fatal(err)
	}
	check := func() error { return r.Check(front.Chain, certs.Incoming) }
	if err := check(); err != nil {
		t.Fatal(err)
	}

	changed := r.Changed()
	replace(t, path, root.crl(t, nil, middle.cert)) // whose issuer, the root, was never presented
	<-changed
	if err := check(); reason.Of(err) != reason.CertRevoked || rejected.Load() != 1 {
		t.Errorf("after the list came: %v, %d counted", err, rejected.Load())
	}

	changed = r.Changed()
	replace(t, path, []byte("-----BEGIN X509 CRL-----\nrubbish"))
	eventually(t, "the bad file", func() bool { return failures.Load() > 0 })
	if err := check(); reason.Of(err) != reason.CertRevoked {
		t.Errorf("a bad file made a revocation go: %v", err)
	}
	select {
	case <-changed:
		t.Error("a bad file was taken for a change")
	default:
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	replace(t, path, root.crl(t, nil))
	<-changed
	if err := check(); err != nil {
		t.Errorf("no longer on the list: %v", err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestSwappedLink: Kubernetes replaces files by swapping a link beside them.
func TestSwappedLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, v := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, v, "file"), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		if err := os.Symlink(to, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	link("1")
	path := filepath.Join(dir, "file")
	if err := os.Symlink("..data/file", path); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- certs.WatchFile(ctx, path, time.Millisecond, func() {
			text, _ := os.ReadFile(path)
			seen <- string(text)
		})
	}()
	if got := <-seen; got != "1" {
		t.Errorf("first %q", got)
	}
	link("2")
	for got := range seen {
		if got == "2" {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBadLists(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "root", nil)
	leaf := ca.svid(t, identity("cart")).Chain[0]
	critical := func(id ...int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier(id), Critical: true, Value: []byte{5, 0}})
		}
	}
	entry := func(l *x509.RevocationList) {
		l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{5, 0}}}
	}
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"empty":            {nil, "no revocation list"},
		"text":             {[]byte("hello"), "no PEM block"},
		"a certificate":    {certs.EncodePEM(leaf), "block \"CERTIFICATE\""},
		"rubbish inside":   {pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")}), "list 1"},
		"the second":       {slices.Concat(ca.crl(t, nil), []byte("-----BEGIN")), "no PEM block"},
		"changes only":     {ca.crl(t, critical(2, 5, 29, 27), leaf), "2.5.29.27"},
		"of other issuers": {ca.crl(t, entry, leaf), "2.5.29.29"},
	} {
		path := filepath.Join(t.TempDir(), "ca-crl.pem")
		replace(t, path, test.text)
		err := certs.NewRevocations(certs.RevocationConfig{Path: path}).Load()
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	var none *certs.Revocations
	if err := none.Check([]*x509.Certificate{leaf}, certs.Incoming); err != nil {
		t.Errorf("without lists: %v", err)
	}
}

func FuzzRevocationLists(f *testing.F) {
	ca := newCA(f, "root", nil)
	f.Add(ca.crl(f, nil, ca.cert))
	f.Add([]byte("-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n"))
	path := filepath.Join(f.TempDir(), "ca-crl.pem")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		r := certs.NewRevocations(certs.RevocationConfig{Path: path})
		if r.Load() == nil {
			_ = r.Check([]*x509.Certificate{ca.cert}, certs.Incoming)
		}
	})
}
