package secret

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// authority is one that a user made.
type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// makeAuthority makes one under another; nil: a root.
func makeAuthority(t *testing.T, name string, parent *authority, key crypto.Signer) *authority {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if parent == nil {
		parent = &authority{key, tmpl}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

func ec(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// users returns the Secret in which a user plugs in a, below and with roots.
func users(t *testing.T, a *authority, roots ...*authority) *corev1.Secret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for _, r := range roots {
		bundle = append(bundle, r.pem()...)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: DefaultPlugged}, Data: map[string][]byte{
		keyCert: a.pem(), keyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		keyChain: append(a.pem(), bundle...), keyRoots: bundle,
	}}
}

func own(t *testing.T, made time.Time) (*corev1.Secret, selfsigned.State) {
	t.Helper()
	st, err := selfsigned.NewState(made)
	if err != nil {
		t.Fatal(err)
	}
	s, err := secretOf(st, nil, Config{Namespace: "mesh", Own: DefaultOwn})
	if err != nil {
		t.Fatal(err)
	}
	return s, st
}

func TestChoose(t *testing.T) {
	t.Parallel()
	now := time.Now()
	cfg := New(Config{Namespace: "mesh", TrustDomain: "cluster.local"}).cfg
	root := makeAuthority(t, "root", nil, ec(t))
	middle := makeAuthority(t, "middle", root, rsaKey(t))
	good := users(t, middle, root)
	edited := func(edit func(map[string][]byte)) *corev1.Secret {
		s := good.DeepCopy()
		edit(s.Data)
		return s
	}
	tls := edited(func(d map[string][]byte) {
		clear(d)
		d["tls.crt"], d["tls.key"], d["ca.crt"] = good.Data[keyCert], good.Data[keyKey], good.Data[keyRoots]
	})
	made, st := own(t, now)
	foreign := users(t, root)
	delete(foreign.Data, keyRoots)
	for _, c := range []struct {
		name       string
		users, own *corev1.Secret
		used       from
		from       from   // of what is in force then; nowhere: what was before
		signs      string // its name
		create     bool
		refused    string
	}{
		{name: "nothing yet", create: true},
		{name: "self-made", own: made, from: selfMade, signs: st.Material().Name()},
		{name: "made by Istio", own: foreign, from: selfMade, signs: "CN=root"},
		{name: "plugged in", users: good, from: plugged, signs: "CN=middle"},
		{name: "plugged in by cert-manager", users: tls, from: plugged, signs: "CN=middle"},
		{name: "both", users: good, own: made, used: selfMade, from: plugged, signs: "CN=middle"},
		{name: "self-made is gone", used: selfMade, create: true},
		{name: "plugged in is gone", own: made, used: plugged, refused: "secret mesh/cacerts is gone"},
		{name: "plugged in is gone, and there is no other", used: plugged, refused: "secret mesh/cacerts is gone"},
		{name: "plugged in is bad", users: edited(func(d map[string][]byte) { d[keyKey] = []byte("x") }), own: made,
			refused: "secret mesh/cacerts: private key: no PEM block"},
		{name: "plugged in is empty", users: &corev1.Secret{}, own: made, used: selfMade, refused: "it has no ca-cert.pem and no ca-key.pem and no root-cert.pem"},
		{name: "cert-manager is not done", users: edited(func(d map[string][]byte) { clear(d); d["tls.crt"] = good.Data[keyCert] }),
			refused: "it has no tls.key and no ca.crt"},
		{name: "self-made is damaged", own: &corev1.Secret{Data: map[string][]byte{keyState: []byte("{")}}, used: selfMade, refused: "secret mesh/istio-ca-secret: authority.json is damaged"},
		{name: "self-made is empty", own: &corev1.Secret{}, refused: "it has no ca-cert.pem and no ca-key.pem"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := choose(c.users, c.own, c.used, cfg, now)
			if got.from != c.from || got.create != c.create || (got.material != nil) != (c.from != nowhere) {
				t.Errorf("from %d, create %v, material %v", got.from, got.create, got.material != nil)
			}
			if got.material != nil && got.material.Name() != c.signs {
				t.Errorf("%q signs, want %q", got.material.Name(), c.signs)
			}
			if (got.refused != nil) != (c.refused != "") || got.refused != nil && !strings.Contains(got.refused.Error(), c.refused) {
				t.Errorf("refused: %v, want %q", got.refused, c.refused)
			}
		})
	}
}

// TestDue: what the leader does, and what it leaves.
func TestDue(t *testing.T) {
	t.Parallel()
	now := time.Now()
	k := New(Config{Namespace: "mesh"})
	fresh, _ := own(t, now)
	asked := fresh.DeepCopy()
	asked.Annotations = map[string]string{AnnotationRotate: "", "other": "stays"}
	half, _ := own(t, now.Add(-selfsigned.IntermediateLife*6/10))
	old, _ := own(t, now.Add(-selfsigned.RootLife*9/10))
	for _, c := range []struct {
		name    string
		secret  *corev1.Secret
		changes bool
		roots   int
		resigns bool
	}{
		{"fresh", fresh, false, 0, false},
		{"a new root is asked for", asked, true, 2, false},
		{"the intermediate is past half its life", half, true, 1, true},
		{"the root is near its end", old, true, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, err := k.due(c.secret, now)
			if err != nil || (next != nil) != c.changes {
				t.Fatalf("changes: %v, %v", next != nil, err)
			}
			if next == nil {
				return
			}
			st, err := parseOwn(next, now)
			if err != nil {
				t.Fatal(err)
			}
			before, err := parseOwn(c.secret, now)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(next.Data[keyRoots]), "BEGIN"); n != c.roots {
				t.Errorf("%d roots, want %d", n, c.roots)
			}
			if (st.Material().Name() != before.Material().Name()) != c.resigns {
				t.Errorf("%q signs, %q did", st.Material().Name(), before.Material().Name())
			}
			if _, there := next.Annotations[AnnotationRotate]; there || len(next.Annotations) != len(c.secret.Annotations)/2 {
				t.Errorf("annotations %v", next.Annotations)
			}
		})
	}
}

// logs is a log that several write.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// replica is a control plane's authority.
type replica struct {
	*Keeper
	log logs
}

func start(t *testing.T, api *fake.Clientset) *replica {
	r := &replica{}
	r.Keeper = New(Config{Client: api, Namespace: "mesh", TrustDomain: "cluster.local", Authority: selfsigned.New(),
		Log: slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *replica) roots() string { return string(r.cfg.Authority.RootsPEM()) }

func (r *replica) signs(t *testing.T, want string) {
	t.Helper()
	svid, err := r.cfg.Authority.Issue(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if got := svid.Chain[0].Issuer.String(); got != want {
		t.Errorf("%s signs, want %s", got, want)
	}
}

// TestLife follows what users do to the Secrets of a mesh with several replicas.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := fake.NewClientset()
		secrets := api.CoreV1().Secrets("mesh")
		var all []*replica
		for range 5 {
			all = append(all, start(t, api))
		}
		settle := func() { time.Sleep(time.Minute); synctest.Wait() }
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		settle()
		first := all[0].roots()
		for _, r := range all {
			if r.roots() != first || strings.Count(first, "BEGIN") != 1 {
				t.Fatalf("replicas that start together made different roots")
			}
		}
		made := all[0].cfg.Authority.Material().Name()

		check(secrets.Delete(t.Context(), DefaultOwn, metav1.DeleteOptions{}))
		settle()
		late := start(t, api)
		settle()
		if late.roots() != first {
			t.Error("the Secret was removed, and what replaced it has another root")
		}
		late.signs(t, made)

		root, second := makeAuthority(t, "root", nil, ec(t)), makeAuthority(t, "second", nil, rsaKey(t))
		middle := makeAuthority(t, "middle", root, rsaKey(t))
		r := all[3]
		apply := func(s *corev1.Secret) {
			t.Helper()
			_, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{})
			check(err)
			settle()
		}
		_, err := secrets.Create(t.Context(), users(t, middle, root), metav1.CreateOptions{})
		check(err)
		settle()
		r.signs(t, "CN=middle")
		if !strings.Contains(r.log.String(), "the new root was not trusted before") {
			t.Error("an abrupt change of roots was not warned of")
		}
		apply(users(t, makeAuthority(t, "middle 2", root, ec(t)), root))
		r.signs(t, "CN=middle 2")

		bad := users(t, middle, second)
		apply(bad)
		r.signs(t, "CN=middle 2")
		if n := strings.Count(r.log.String(), "the last good one signs on"); n != 1 {
			t.Errorf("a bad Secret was told of %d times", n)
		}
		apply(users(t, makeAuthority(t, "middle 3", second, ec(t)), root, second))
		r.signs(t, "CN=middle 3")
		if got := strings.Count(r.roots(), "BEGIN"); got != 2 || !strings.HasPrefix(r.roots(), string(second.pem())) {
			t.Errorf("%d roots", got)
		}
		check(secrets.Delete(t.Context(), DefaultPlugged, metav1.DeleteOptions{}))
		settle()
		r.signs(t, "CN=middle 3")
		if !strings.Contains(r.log.String(), "secret mesh/cacerts is gone") {
			t.Error("that the Secret is gone was not told")
		}
		for _, r := range append(all, late) {
			for _, line := range strings.Fields(string(bad.Data[keyKey])) {
				if len(line) > 20 && strings.Contains(r.log.String(), line) {
					t.Fatal("a key is in the log")
				}
			}
			if strings.Contains(r.log.String(), "PRIVATE") {
				t.Fatal("a key is in the log")
			}
		}
	})
}

// TestLead: a rotation reaches every replica, and one that is asked for is begun
// at once.
func TestLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, _ := own(t, time.Now().Add(-selfsigned.IntermediateLife*6/10))
		api := fake.NewClientset(old)
		a, b := start(t, api), start(t, api)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		before := b.cfg.Authority.Material().Name()
		go func() { done <- a.Lead(ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if name := b.cfg.Authority.Material().Name(); name == before || name != a.cfg.Authority.Material().Name() {
			t.Errorf("%q signs after the intermediate's time", name)
		}
		s, err := api.CoreV1().Secrets("mesh").Get(t.Context(), DefaultOwn, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s = s.DeepCopy()
		s.Annotations = map[string]string{AnnotationRotate: "please"}
		if _, err = api.CoreV1().Secrets("mesh").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := strings.Count(b.roots(), "BEGIN"); n != 2 {
			t.Errorf("%d roots after a new one was asked for", n)
		}
		time.Sleep(selfsigned.StagingTime + 2*checkEvery)
		synctest.Wait()
		if !strings.Contains(b.log.String(), "certificate authority in force") || strings.HasPrefix(b.roots(), string(old.Data[keyRoots])) {
			t.Error("the new root does not sign after a day")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
