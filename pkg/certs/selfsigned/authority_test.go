package selfsigned

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

var cart = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}

func open(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// verify checks a leaf of from against the roots of by, as a TLS peer would.
func verify(t *testing.T, svid *certs.SVID, roots *x509.CertPool) error {
	t.Helper()
	pool := x509.NewCertPool()
	for _, c := range svid.Chain[1:] {
		pool.AddCert(c)
	}
	_, err := svid.Chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: pool, CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func issue(t *testing.T, a *Authority) *certs.SVID {
	t.Helper()
	svid, err := a.Issue(context.Background(), cart)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestStateSurvivesReopening(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir)
	second := open(t, dir)
	if string(first.RootsPEM()) != string(second.RootsPEM()) {
		t.Error("another root after reopening")
	}
	if err := verify(t, issue(t, second), first.Roots()); err != nil {
		t.Error(err)
	}
	bundle, err := os.ReadFile(filepath.Join(dir, BundleFile))
	if err != nil || string(bundle) != string(first.RootsPEM()) {
		t.Errorf("bundle file: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, stateFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file mode %v, %v", info.Mode(), err)
	}
	leftovers, _ := filepath.Glob(filepath.Join(dir, "*.new"))
	if len(leftovers) > 0 {
		t.Errorf("left over: %v", leftovers)
	}
}

func TestConcurrentCreationAgrees(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var wg sync.WaitGroup
	roots := make([]string, 8)
	for i := range roots {
		wg.Go(func() {
			a, err := NewAuthority(dir)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = string(a.RootsPEM())
		})
	}
	wg.Wait()
	for _, r := range roots {
		if r != roots[0] {
			t.Fatal("two processes made two roots")
		}
	}
}

func TestProcessesSeeEachOthersChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	if err := a.RotateRoot(); err != nil {
		t.Fatal(err)
	}
	if err := b.PromoteRoot(); err != nil {
		t.Fatal("b does not see the root that a added:", err)
	}
	if err := a.rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	if string(a.RootsPEM()) != string(b.RootsPEM()) || !issue(t, a).Chain[1].Equal(issue(t, b).Chain[1]) {
		t.Error("a did not pick up what b changed")
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.RotateRoot(); err == nil {
		t.Error("damaged state was overwritten")
	}
	issue(t, a) // from memory
}

func TestDamagedStateIsAnErrorAndIsKept(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(filepath.Join(func() string { d := t.TempDir(); open(t, d); return d }(), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(func() string { d := t.TempDir(); open(t, d); return d }(), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	goodKey := string(good)[strings.LastIndex(string(good), `"key"`):]
	for name, text := range map[string]string{
		"empty":       "",
		"truncated":   string(good[:len(good)/2]),
		"no roots":    `{"roots":[],"signing":0}`,
		"bad pem":     strings.Replace(string(good), "BEGIN CERTIFICATE", "BEGIN NONSENSE", 1),
		"foreign key": strings.Replace(string(good), goodKey, string(other)[strings.LastIndex(string(other), `"key"`):], 1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, stateFile)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := NewAuthority(dir)
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("error %v does not name the damaged file", err)
			}
			if after, _ := os.ReadFile(path); string(after) != text {
				t.Error("damaged state was overwritten")
			}
		})
	}
}

func TestSignCSRIgnoresTheRequestsNames(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	evil := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/kube-system/sa/admin"}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs: []*url.URL{evil}, DNSNames: []string{"istiod.istio-system.svc"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	chain, err := a.SignCSR(csr, cart, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := certs.ParseSVID(cart, key, chain)
	if err != nil {
		t.Fatal(err)
	}
	leaf := svid.Chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != cart.String() || len(leaf.DNSNames) != 0 || leaf.IsCA {
		t.Errorf("leaf names: %v %v", leaf.URIs, leaf.DNSNames)
	}
	if err := verify(t, svid, a.Roots()); err != nil {
		t.Error(err)
	}
}

func TestSignCSRBounds(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir())
	_, csr, err := certs.NewRequest(cart)
	if err != nil {
		t.Fatal(err)
	}
	for _, ttl := range []time.Duration{-time.Hour, time.Second, MaxTTL + time.Second} {
		if _, err := a.SignCSR(csr, cart, ttl); err == nil {
			t.Errorf("validity %s was accepted", ttl)
		}
	}
	for _, id := range []mesh.Identity{{}, {TrustDomain: "td", Namespace: "a/b", ServiceAccount: "c"}, {TrustDomain: "td", Namespace: "a"}} {
		if _, err := a.SignCSR(csr, id, time.Hour); err == nil {
			t.Errorf("identity %+v was accepted", id)
		}
	}
	broken := append([]byte(nil), csr...)
	broken[len(broken)/2] ^= 1
	for _, bad := range [][]byte{nil, []byte("x"), broken, certs.EncodePEM(a.state.Load().intermediate.cert)} {
		if _, err := a.SignCSR(bad, cart, time.Hour); err == nil {
			t.Errorf("request %q was accepted", bad)
		}
	}
}

func TestServerCertificate(t *testing.T) {
	t.Parallel()
	a := open(t, t.TempDir())
	cert, err := a.ServerCertificate([]string{"controlplane.local"}, []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.state.Load().intermediate.cert)
	for _, host := range []string{"controlplane.local", "127.0.0.1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: a.Roots(), Intermediates: pool, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := a.ServerCertificate(nil, nil, 0); err == nil {
		t.Error("a certificate for nothing was made")
	}
}

// TestRootRotation walks through a whole rotation and checks at each step that
// certificates issued before it and after it accept one another.
func TestRootRotation(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a := open(t, dir)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		before := issue(t, a)

		if err := a.RotateRoot(); err != nil {
			t.Fatal(err)
		}
		if err := a.RotateRoot(); err == nil {
			t.Error("a second rotation at the same time was accepted")
		}
		staged := issue(t, a)
		if len(staged.RootCerts) != 2 {
			t.Fatalf("%d roots while staged", len(staged.RootCerts))
		}
		mutual(t, before, staged)

		time.Sleep(StagingTime - time.Hour)
		staged = issue(t, a)
		time.Sleep(time.Hour + 2*checkEvery)
		promoted := issue(t, a)
		mutual(t, staged, promoted)
		if err := verify(t, promoted, before.Roots); err == nil {
			t.Error("the new root signs nothing")
		}
		mutual(t, promoted, issue(t, open(t, dir)))

		time.Sleep(MaxTTL + 2*checkEvery)
		after := issue(t, a)
		if len(after.RootCerts) != 1 || !after.RootCerts[0].Equal(promoted.RootCerts[0]) {
			t.Errorf("%d roots at the end", len(after.RootCerts))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func mutual(t *testing.T, a, b *certs.SVID) {
	t.Helper()
	if err := verify(t, a, b.Roots); err != nil {
		t.Errorf("newer refuses older: %v", err)
	}
	if err := verify(t, b, a.Roots); err != nil {
		t.Errorf("older refuses newer: %v", err)
	}
}

func TestIntermediateRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := Ephemeral()
		if err != nil {
			t.Fatal(err)
		}
		old := issue(t, a)
		time.Sleep(IntermediateLife/2 + time.Hour)
		if err := a.rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
		renewed := issue(t, a)
		if renewed.Chain[1].Equal(old.Chain[1]) {
			t.Error("the intermediate was not replaced at half life")
		}
		if err := verify(t, renewed, old.Roots); err != nil {
			t.Error(err)
		}
		time.Sleep(RootLife * 4 / 5)
		if err := a.rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
		if len(a.state.Load().roots) != 2 {
			t.Error("no successor for a root near its end")
		}
	})
}

func TestFixedIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	log := WithLog(textLog(&said))
	a, b := Fixed(log), Fixed(log)
	if string(a.RootsPEM()) != string(b.RootsPEM()) {
		t.Error("two fixed roots differ")
	}
	mutual(t, issue(t, a), issue(t, b))
	before := a.state.Load()
	if err := a.rotate(time.Now()); err != nil || a.state.Load() != before {
		t.Errorf("the fixed authority rotated: %v", err)
	}
	if !strings.Contains(said.String(), "FAKE CERTIFICATE AUTHORITY") {
		t.Errorf("no warning: %q", said.String())
	}
}

func FuzzParseState(f *testing.F) {
	st, err := newState(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	good, err := st.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"roots":[{}],"signing":0}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		st, err := parseState(text)
		if err == nil && (st.intermediate == nil || len(st.roots) == 0) {
			t.Error("half a state")
		}
	})
}

func FuzzParseCSR(f *testing.F) {
	_, csr, err := certs.NewRequest(cart)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Fuzz(func(t *testing.T, text []byte) {
		if csr, err := ParseCSR(text); err == nil && csr.PublicKey == nil {
			t.Error("no key")
		}
	})
}
