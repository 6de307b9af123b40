package spire

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// patience bounds every wait; reaching it is a failure.
const patience = 2 * time.Minute

// follow runs an Issuer for an agent, and gives what it delivers.
func follow(t *testing.T, cfg Config) (*Issuer, <-chan *certs.SVID) {
	t.Helper()
	cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 10*time.Millisecond
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	delivered := make(chan *certs.SVID, 100)
	i.Deliver(func(s *certs.SVID) { delivered <- s })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i, delivered
}

func ask(t *testing.T, i *Issuer, id mesh.Identity) (*certs.SVID, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return i.Issue(ctx, id)
}

func next(t *testing.T, delivered <-chan *certs.SVID) *certs.SVID {
	t.Helper()
	select {
	case s := <-delivered:
		return s
	case <-time.After(patience):
		t.Fatal("nothing was delivered")
		return nil
	}
}

// until waits for a delivery that fits.
func until(t *testing.T, delivered <-chan *certs.SVID, fits func(*certs.SVID) bool) {
	t.Helper()
	for !fits(next(t, delivered)) {
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestRenewalsAreDelivered(t *testing.T) {
	t.Parallel()
	a, home := newAgent(t), newDomain(t, "home.test")
	first := home.entry("cart", time.Hour)
	a.set(func() { a.entries, a.bundles = []entry{first}, map[string][]byte{"home.test": home.roots()} })
	i, delivered := follow(t, Config{AdminSocket: a.socket})
	svid, err := ask(t, i, home.id("cart"))
	if err != nil {
		t.Fatal(err)
	}
	if svid.Serial != first.svid.Serial || len(svid.Chain) != 2 || svid.Federated == nil {
		t.Errorf("got %+v", svid)
	}
	for range 3 {
		again := home.entry("cart", time.Hour)
		a.set(func() { a.entries = []entry{again} })
		until(t, delivered, func(s *certs.SVID) bool { return s.Serial == again.svid.Serial })
		if got, err := ask(t, i, home.id("cart")); err != nil || got.Serial != again.svid.Serial {
			t.Errorf("asked again: %v, %v", got, err)
		}
	}
	if n := a.open(); n != 1 {
		t.Errorf("%d streams for one identity", n)
	}
	i.Release(home.id("cart"))
	eventually(t, "the stream to end", func() bool { return a.open() == 0 })
}

// TestBundles: each SVID trusts its own domain, those that its entry federates
// with, and what the bundles say now.
func TestBundles(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	home, away, far := newDomain(t, "home.test"), newDomain(t, "away.test"), newDomain(t, "far.test")
	cart, till := home.entry("cart", time.Hour, "spiffe://away.test"), home.entry("till", time.Hour)
	i, delivered := follow(t, Config{AdminSocket: a.socket})
	a.set(func() {
		a.entries = []entry{cart, till}
		a.bundles = map[string][]byte{"home.test": home.roots(), "away.test": away.roots(), "far.test": far.roots()}
	})
	federates := func(sa string, want ...string) {
		t.Helper()
		svid, err := ask(t, i, home.id(sa))
		if err != nil {
			t.Fatal(err)
		}
		if len(svid.Federated) != len(want) {
			t.Errorf("%s federates with %d domains, want %v", sa, len(svid.Federated), want)
		}
		for _, td := range want {
			if len(svid.Federated[td]) == 0 {
				t.Errorf("%s lacks the bundle of %s", sa, td)
			}
		}
	}
	federates("cart", "away.test")
	federates("till")

	if err := away.RotateRoot(); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.bundles = map[string][]byte{"home.test": home.roots(), "away.test": away.roots()} })
	until(t, delivered, func(s *certs.SVID) bool {
		if s.ID == home.id("till") && len(s.Federated) != 0 {
			t.Error("a foreign bundle reached an entry without federation")
		}
		return s.ID == home.id("cart") && len(s.Federated["away.test"]) == 2
	})
	if err := home.RotateRoot(); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.bundles["home.test"] = home.roots() })
	until(t, delivered, func(s *certs.SVID) bool { return s.ID == home.id("till") && len(s.RootCerts) == 2 })
}

func TestReasons(t *testing.T) {
	t.Parallel()
	home := newDomain(t, "home.test")
	bundles := map[string][]byte{"home.test": home.roots()}
	misnamed := home.entry("till", time.Hour)
	misnamed.selectors = "/ns:shop/sa:cart"
	for name, test := range map[string]struct {
		agent func(*fakeAgent)
		want  string
	}{
		"no entry":      {func(a *fakeAgent) { a.bundles = bundles }, "SPIRE has no entry for it"},
		"another's":     {func(a *fakeAgent) { a.bundles, a.entries = bundles, []entry{misnamed} }, "are for spiffe://home.test/ns/shop/sa/till"},
		"no delegate":   {func(a *fakeAgent) { a.denied = true }, "authorized_delegates"},
		"other bundles": {func(a *fakeAgent) { a.bundles, a.entries = map[string][]byte{}, []entry{home.entry("cart", time.Hour)} }, "0 roots for its trust domain"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t)
			a.set(func() { test.agent(a) })
			i, _ := follow(t, Config{AdminSocket: "unix:" + a.socket})
			_, err := ask(t, i, home.id("cart"))
			if reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), home.id("cart").String()) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	i, _ := follow(t, Config{AdminSocket: filepath.Join(t.TempDir(), "none")})
	if _, err := ask(t, i, home.id("cart")); reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without an agent: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an Issuer without a socket")
	}
}

// TestAgentRestarts: what was issued serves without the agent, and renewals come
// again with it.
func TestAgentRestarts(t *testing.T) {
	t.Parallel()
	a, home := newAgent(t), newDomain(t, "home.test")
	a.set(func() {
		a.entries, a.bundles = []entry{home.entry("cart", time.Hour)}, map[string][]byte{"home.test": home.roots()}
	})
	i, delivered := follow(t, Config{AdminSocket: a.socket})
	first, err := ask(t, i, home.id("cart"))
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	eventually(t, "the break to be noticed", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.streams[home.id("cart")].err != nil
	})
	if got, err := ask(t, i, home.id("cart")); err != nil || got.Serial != first.Serial {
		t.Errorf("without the agent: %v, %v", got, err)
	}
	again := home.entry("cart", time.Hour)
	a.set(func() { a.entries = []entry{again} })
	a.start()
	until(t, delivered, func(s *certs.SVID) bool { return s.Serial == again.svid.Serial })
}

// TestEntryComesAndGoes: a certificate serves until it ends though its entry went.
func TestEntryComesAndGoes(t *testing.T) {
	t.Parallel()
	a, home := newAgent(t), newDomain(t, "home.test")
	a.set(func() { a.bundles = map[string][]byte{"home.test": home.roots()} })
	i, delivered := follow(t, Config{AdminSocket: a.socket})
	if _, err := ask(t, i, home.id("cart")); err == nil {
		t.Fatal("a certificate out of nothing")
	}
	e := home.entry("cart", time.Hour)
	a.set(func() { a.entries = []entry{e} })
	until(t, delivered, func(s *certs.SVID) bool { return s.Serial == e.svid.Serial })
	a.set(func() { a.entries = nil })
	eventually(t, "the entry's end to be noticed", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.streams[home.id("cart")].err != nil
	})
	if _, err := ask(t, i, home.id("cart")); err != nil {
		t.Errorf("the certificate, which is still good: %v", err)
	}
}

// TestWithCache is the whole of it: a renewal by the agent is what the next
// connection uses, and a forgotten identity has no stream.
func TestWithCache(t *testing.T) {
	t.Parallel()
	a, home := newAgent(t), newDomain(t, "home.test")
	a.set(func() {
		a.entries, a.bundles = []entry{home.entry("cart", time.Hour)}, map[string][]byte{"home.test": home.roots()}
	})
	i, err := New(Config{AdminSocket: a.socket})
	if err != nil {
		t.Fatal(err)
	}
	cache := certs.NewCache(i, certs.CacheConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- cache.Run(ctx) }()
	go func() { done <- i.Run(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	id := home.id("cart")
	cache.Prefetch(id)
	again := home.entry("cart", time.Hour)
	if _, err := cache.Certificate(ctx, id); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.entries = []entry{again} })
	eventually(t, "the renewal", func() bool {
		svid, err := cache.Certificate(ctx, id)
		return err == nil && svid.Serial == again.svid.Serial
	})
	cache.Forget(id)
	eventually(t, "the stream to end", func() bool { return a.open() == 0 })
}

// TestBundlesComeLate: an agent that has refused us, and then sends a certificate
// before the bundles, leaves us without an outcome until they come.
func TestBundlesComeLate(t *testing.T) {
	t.Parallel()
	a, home := newAgent(t), newDomain(t, "home.test")
	a.set(func() { a.denied = true })
	i, delivered := follow(t, Config{AdminSocket: a.socket})
	id := home.id("cart")
	if _, err := ask(t, i, id); err == nil {
		t.Fatal("a certificate out of nothing")
	}
	e := home.entry("cart", time.Hour)
	a.set(func() { a.denied, a.mute, a.entries = false, true, []entry{e} })
	eventually(t, "the certificate", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.streams[id].got != nil
	})
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(context.DeadlineExceeded)
	if _, err := i.Issue(ctx, id); reason.Of(err) != reason.NoCertificate {
		t.Errorf("before the bundles: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		svid, err := i.Issue(context.Background(), id)
		if err == nil && svid.Serial != e.svid.Serial {
			err = context.Canceled
		}
		waiting <- err
	}()
	a.set(func() { a.mute, a.bundles = false, map[string][]byte{"home.test": home.roots()} })
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	until(t, delivered, func(s *certs.SVID) bool { return s.Serial == e.svid.Serial })
}
