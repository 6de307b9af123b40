package certs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func export(t testing.TB, cache *certs.Cache) []byte {
	t.Helper()
	data, err := cache.Export()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSuccessorTakesCertificatesOver(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		cart := get(t, cache, identity("cart"))
		ca.ttl = time.Hour
		get(t, cache, identity("short"))
		data := export(t, cache)

		next := certs.NewCache(ca, certs.CacheConfig{})
		time.Sleep(2 * time.Hour) // "short" ends on the way
		if err := next.Import(data); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- next.Run(ctx) }()

		before := len(ca.record())
		got := get(t, next, identity("cart"))
		if got.Serial != cart.Serial || !got.NotAfter.Equal(cart.NotAfter) || len(got.RootCerts) != len(cart.RootCerts) {
			t.Errorf("got certificate %s until %s, want %s until %s", got.Serial, got.NotAfter, cart.Serial, cart.NotAfter)
		}
		if n := len(ca.record()); n != before {
			t.Errorf("%d requests for what was taken over", n-before)
		}
		if len(next.Snapshot()) != 1 {
			t.Errorf("taken over: %v, want no expired one", next.Snapshot())
		}
		time.Sleep(12 * time.Hour)
		if renewed := get(t, next, identity("cart")); renewed.Serial == cart.Serial {
			t.Error("what was taken over is not renewed")
		}
		cancel()
		<-done
	})
}

func TestImportKeepsWhatIsHeld(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		old := get(t, cache, identity("cart"))
		data := export(t, cache)
		cache.Forget(identity("cart"))
		held := get(t, cache, identity("cart"))
		if err := cache.Import(data); err != nil {
			t.Fatal(err)
		}
		if got := get(t, cache, identity("cart")); got != held || got.Serial == old.Serial {
			t.Error("an older certificate replaced the one that is held")
		}
	})
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	good := exportOf(t, "cart", "till")
	for name, bad := range map[string][]byte{
		"nothing":         nil,
		"no JSON":         []byte("certificates"),
		"another version": bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1),
		"cut off":         good[:len(good)/2],
		"another key":     swapKeys(t, good),
		"wrong number":    bytes.Replace(good, []byte(`"chain":[0`), []byte(`"chain":[99`), 1),
		"negative number": bytes.Replace(good, []byte(`"chain":[0`), []byte(`"chain":[-1`), 1),
		"other identity":  bytes.Replace(good, []byte(`/sa/cart"`), []byte(`/sa/evil"`), 1),
		"no identity":     bytes.Replace(good, []byte(`/sa/cart"`), []byte(`/x/cart"`), 1),
	} {
		cache := certs.NewCache(nil, certs.CacheConfig{})
		if err := cache.Import(bad); err == nil {
			t.Errorf("%s: accepted", name)
		} else if n := len(cache.Snapshot()); n != 0 {
			t.Errorf("%s: refused, but %d certificates were taken", name, n)
		}
	}
}

// exportOf is the export of a cache with certificates for the named accounts.
func exportOf(t testing.TB, accounts ...string) (data []byte) {
	t.Helper()
	authority, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	cache := certs.NewCache(authority, certs.CacheConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	for _, sa := range accounts {
		if _, err := cache.Certificate(ctx, identity(sa)); err != nil {
			t.Error(err)
		}
	}
	data = export(t, cache)
	cancel()
	<-done
	return data
}

// swapKeys gives each of two identities the other's private key.
func swapKeys(t *testing.T, data []byte) []byte {
	t.Helper()
	parts := bytes.Split(data, []byte(`"key":"`))
	if len(parts) != 3 {
		t.Fatalf("%d keys", len(parts)-1)
	}
	first, rest1, _ := bytes.Cut(parts[1], []byte(`"`))
	second, rest2, _ := bytes.Cut(parts[2], []byte(`"`))
	return bytes.Join([][]byte{
		parts[0],
		bytes.Join([][]byte{second, rest1}, []byte(`"`)),
		bytes.Join([][]byte{first, rest2}, []byte(`"`)),
	}, []byte(`"key":"`))
}

// FuzzImport: whatever is accepted can be exported and imported again.
func FuzzImport(f *testing.F) {
	f.Add(exportOf(f, "cart", "till"))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"certificates":["AA=="],"entries":[{"id":"spiffe://a/ns/b/sa/c","chain":[0]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cache := certs.NewCache(nil, certs.CacheConfig{})
		if cache.Import(data) != nil {
			return
		}
		again := certs.NewCache(nil, certs.CacheConfig{})
		if err := again.Import(export(t, cache)); err != nil {
			t.Fatal(err)
		}
		if a, b := len(cache.Snapshot()), len(again.Snapshot()); a != b {
			t.Fatalf("%d certificates became %d", a, b)
		}
	})
}

// TestImportKeepsFederation: what takes no peer of another trust domain takes none
// in the next process either, whoever signed it.
func TestImportKeepsFederation(t *testing.T) {
	t.Parallel()
	home := newCA(t, "home", nil)
	key, cart := newKey(t), identity("cart")
	roots := []*x509.Certificate{home.cert}
	for name, federated := range map[string]map[string][]*x509.Certificate{
		"nobody": nil, "another": {"away.local": {newCA(t, "away", nil).cert}},
	} {
		svid, err := certs.NewSVID(cart, key, home.chain(home.leaf(t, key, cart)), roots, federated)
		if err != nil {
			t.Fatal(err)
		}
		cache := certs.NewCache(always{svid}, certs.CacheConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- cache.Run(ctx) }()
		if _, err := cache.Certificate(ctx, cart); err != nil {
			t.Fatal(err)
		}
		data := export(t, cache)
		cancel()
		<-done
		next := certs.NewCache(nil, certs.CacheConfig{})
		if err := next.Import(data); err != nil {
			t.Fatal(err)
		}
		got, err := next.Certificate(t.Context(), cart)
		if err != nil {
			t.Fatal(err)
		}
		if got.Federated == nil || len(got.Federated) != len(federated) {
			t.Errorf("federates with %s: handed over as %v", name, got.Federated)
		}
	}
}

// always issues one certificate.
type always struct{ svid *certs.SVID }

func (a always) Issue(context.Context, mesh.Identity) (*certs.SVID, error) { return a.svid, nil }
