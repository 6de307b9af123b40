package selfsigned

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// maker makes the authorities that users plug in.
type maker struct {
	t   *testing.T
	now time.Time
}

func (m maker) ec() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

func (m maker) rsa(bits int) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// authority makes a CA certificate under parent; nil is a root.
func (m maker) authority(name string, parent *signer, key crypto.Signer, edit ...func(*x509.Certificate)) *signer {
	m.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name},
		NotBefore: m.now.Add(-time.Hour), NotAfter: m.now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, e := range edit {
		e(tmpl)
	}
	if parent == nil {
		parent = &signer{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, key.Public(), parent.key)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return &signer{cert, key}
}

func block(kind string, der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(key crypto.Signer) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return block("PRIVATE KEY", der, err)
}

func sec1(key crypto.Signer) []byte {
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	return append([]byte("-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"), block("EC PRIVATE KEY", der, err)...)
}

func pkcs1(key crypto.Signer) []byte {
	return block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key.(*rsa.PrivateKey)), nil)
}

func pems(list ...*signer) []byte {
	var out []byte
	for _, s := range list {
		out = append(out, certs.EncodePEM(s.cert)...)
	}
	return out
}

// TestLayouts: however the way to the root is written down, what is signed comes
// with it, without the root, and with all roots last.
func TestLayouts(t *testing.T) {
	t.Parallel()
	m := maker{t, time.Now()}
	root, other := m.authority("root", nil, m.rsa(2048)), m.authority("other", nil, m.ec())
	middle := m.authority("middle", root, m.ec())
	bottom := m.authority("bottom", middle, m.rsa(2048))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := m.authority("ed", root, edKey)
	for _, c := range []struct {
		name  string
		files Files
		way   []*signer
	}{
		{"istio: the chain begins with the certificate and ends with the root",
			Files{pems(bottom), pkcs1(bottom.key), pems(bottom, middle, root), pems(root)}, []*signer{bottom, middle}},
		{"the chain is only what is missing", Files{pems(bottom), pkcs8(bottom.key), pems(middle), pems(root)}, []*signer{bottom, middle}},
		{"cert-manager: everything in one file", Files{pems(bottom, middle), pkcs8(bottom.key), nil, pems(root)}, []*signer{bottom, middle}},
		{"one intermediate, no chain", Files{pems(middle), sec1(middle.key), nil, pems(root)}, []*signer{middle}},
		{"another root too", Files{pems(middle), pkcs8(middle.key), pems(middle), pems(other, root, other)}, []*signer{middle}},
		{"the root itself", Files{pems(root), pkcs8(root.key), pems(root), pems(other, root)}, nil},
		{"ed25519", Files{pems(ed), pkcs8(ed.key), nil, pems(root)}, []*signer{ed}},
		{"strangers in the chain", Files{pems(middle), pkcs8(middle.key), pems(other, bottom), pems(root)}, []*signer{middle}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseMaterial(c.files, "cluster.local", m.now)
			if err != nil {
				t.Fatal(err)
			}
			a := New()
			a.Use(got)
			svid, err := a.Issue(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"})
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(t, svid, a.Roots()); err != nil {
				t.Error(err)
			}
			for i, want := range c.way {
				if len(svid.Chain) != len(c.way)+1 || !svid.Chain[i+1].Equal(want.cert) {
					t.Fatalf("sent %d certificates above the leaf, want %d", len(svid.Chain)-1, len(c.way))
				}
			}
			if !svid.RootCerts[0].Equal(root.cert) {
				t.Errorf("the first root is %s", svid.RootCerts[0].Subject)
			}
			if trusted := len(svid.RootCerts) > 1; trusted != (strings.Contains(string(c.files.Roots), string(pems(other)))) {
				t.Errorf("%d roots", len(svid.RootCerts))
			}
		})
	}
}

// TestRefusedMaterial: what would make certificates that nobody accepts is not taken, and the
// words say why.
func TestRefusedMaterial(t *testing.T) {
	t.Parallel()
	m := maker{t, time.Now()}
	root, other := m.authority("root", nil, m.ec()), m.authority("other", nil, m.ec())
	good := m.authority("good", root, m.ec())
	made := func(edit func(*x509.Certificate)) *signer { return m.authority("made", root, m.ec(), edit) }
	files := func(s *signer) Files { return Files{pems(s), pkcs8(s.key), nil, pems(root)} }
	expired := made(func(c *x509.Certificate) { c.NotAfter = m.now.Add(-time.Minute) })
	early := made(func(c *x509.Certificate) { c.NotBefore = m.now.Add(time.Hour) })
	leaf := made(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	noSign := made(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	foreign := made(func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"example.org"}, true
	})
	clients := made(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	shallow := m.authority("shallow", root, m.ec(), func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	deep := m.authority("deep", shallow, m.ec())
	weak := m.authority("weak", root, m.rsa(1024))
	oldRoot := m.authority("old root", nil, m.ec(), func(c *x509.Certificate) { c.NotAfter = m.now.Add(-time.Minute) })
	encrypted := block("ENCRYPTED PRIVATE KEY", []byte("x"), nil)
	broken := block("PRIVATE KEY", []byte("secret"), nil)
	for _, c := range []struct {
		name, want string
		files      Files
	}{
		{"nothing", "signing certificate: ", Files{}},
		{"no key", "no PEM block of a private key", Files{pems(good), nil, nil, pems(root)}},
		{"encrypted key", "store it without a passphrase", Files{pems(good), encrypted, nil, pems(root)}},
		{"certificate as key", `PEM block "CERTIFICATE"`, Files{pems(good), pems(good), nil, pems(root)}},
		{"broken key", `"PRIVATE KEY" does not parse`, Files{pems(good), broken, nil, pems(root)}},
		{"no roots", "roots: ", Files{pems(good), pkcs8(good.key), nil, nil}},
		{"garbage in the chain", "chain: ", Files{pems(good), pkcs8(good.key), []byte("garbage"), pems(root)}},
		{"another key", "does not belong", Files{pems(good), pkcs8(root.key), nil, pems(root)}},
		{"another root", "no way from the signing certificate", Files{pems(good), pkcs8(good.key), nil, pems(other)}},
		{"a certificate is missing on the way", "no way from", files(m.authority("low", good, m.ec()))},
		{"expired", "expired at", files(expired)},
		{"not yet valid", "is valid from", files(early)},
		{"not an authority", "CA is not true", files(leaf)},
		{"may not sign", "may not sign certificates", files(noSign)},
		{"for other names", "would not be accepted", files(foreign)},
		{"for clients only", "would not be accepted", files(clients)},
		{"too deep", "would not be accepted", Files{pems(deep), pkcs8(deep.key), pems(shallow), pems(root)}},
		{"weak", "1024 bits", files(weak)},
		{"expired root", "expired", Files{pems(oldRoot), pkcs8(oldRoot.key), nil, pems(oldRoot)}},
		{"a flood", "at most 64", Files{pems(good), pkcs8(good.key), pems(slices.Repeat([]*signer{good}, 100)...), pems(root)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseMaterial(c.files, "cluster.local", m.now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v; want an error with %q", got, err, c.want)
			}
			for _, line := range strings.Split(strings.TrimSpace(string(c.files.Key)), "\n") {
				if err != nil && !strings.HasPrefix(line, "-----") && line != "" && strings.Contains(err.Error(), line) {
					t.Errorf("the key is in the error: %v", err)
				}
			}
		})
	}
}

func TestMaterialFacts(t *testing.T) {
	t.Parallel()
	m := maker{t, time.Now().Truncate(time.Second)}
	root, other := m.authority("root", nil, m.ec()), m.authority("other", nil, m.ec())
	short := m.authority("short", root, m.ec(), func(c *x509.Certificate) { c.NotAfter = m.now.Add(10 * time.Hour) })
	long := m.authority("long", short, m.ec())
	parse := func(f Files) *Material {
		t.Helper()
		got, err := ParseMaterial(f, "cluster.local", m.now)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a := parse(Files{pems(long), pkcs8(long.key), pems(short), pems(root)})
	both := parse(Files{pems(long), pkcs8(long.key), pems(short, root), pems(other, root)})
	b := parse(Files{pems(other), pkcs8(other.key), nil, pems(other)})
	rootEnd, chainEnd := a.Expiry()
	if !rootEnd.Equal(root.cert.NotAfter) || !chainEnd.Equal(short.cert.NotAfter) {
		t.Errorf("expire at %s and %s", rootEnd, chainEnd)
	}
	if a.Equal(both) || a.Equal(nil) || !a.Equal(parse(Files{pems(long), pkcs8(long.key), pems(short, long), pems(root, root)})) {
		t.Error("what is equal, and what is not")
	}
	if a.Trusts(b) || !both.Trusts(b) || !both.Trusts(a) || !a.Trusts(both) {
		t.Error("who trusts whom")
	}
	authority := New()
	if _, err := authority.Issue(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"}); err == nil || authority.RootsPEM() != nil {
		t.Error("signed with nothing")
	}
	first := authority.Changed()
	authority.Use(a)
	second := authority.Changed()
	authority.Use(parse(Files{pems(long), pkcs8(long.key), pems(short, long), pems(root, root)}))
	select {
	case <-first:
	default:
		t.Error("a change was not told")
	}
	select {
	case <-second:
		t.Error("the same again is no change")
	default:
	}
}

// TestAdoptedRoot: a root that was made by another mesh signs on, and is succeeded
// in time as if it were our own.
func TestAdoptedRoot(t *testing.T) {
	t.Parallel()
	m := maker{t, time.Now()}
	foreign := m.authority("cluster.local", nil, m.rsa(2048))
	st, err := AdoptState(pems(foreign), pkcs1(foreign.key), m.now)
	if err != nil {
		t.Fatal(err)
	}
	text, err := st.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if st, err = ParseState(text); err != nil {
		t.Fatal(err)
	}
	if got := st.Material(); !got.signer.cert.Equal(foreign.cert) || len(got.chain) != 0 || len(got.roots) != 1 {
		t.Errorf("signs with %q, %d above, %d roots", got.Name(), len(got.chain), len(got.roots))
	}
	if _, changed, err := st.Advance(m.now); changed || err != nil {
		t.Errorf("changed at once: %v, %v", changed, err)
	}
	late := foreign.cert.NotAfter.Add(-time.Hour)
	st, changed, err := st.Advance(late)
	if err != nil || !changed || len(st.Material().roots) != 2 || st.st.signing != 0 {
		t.Errorf("near its end: changed %v, %v, %d roots, root %d signs", changed, err, len(st.Material().roots), st.st.signing)
	}
	if files, err := st.Files(); err != nil || string(files.Cert) != string(pems(foreign)) || !strings.Contains(string(files.Roots), string(files.Cert)) {
		t.Errorf("files of it: %v", err)
	}
	mid := m.authority("mid", foreign, m.ec())
	if _, err := AdoptState(pems(mid), pkcs8(mid.key), m.now); err == nil || !strings.Contains(err.Error(), "no root") {
		t.Errorf("adopted what is no root: %v", err)
	}
	narrow := m.authority("narrow", nil, m.ec(), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	if st, err = AdoptState(pems(narrow), pkcs8(narrow.key), m.now); err != nil {
		t.Fatal(err)
	}
	if _, changed, err := st.Advance(m.now.Add(600 * time.Hour)); changed || err != nil {
		t.Errorf("a root that allows no intermediates got one: %v, %v", changed, err)
	}
}
