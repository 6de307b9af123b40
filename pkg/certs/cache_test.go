package certs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
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

func identity(sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: sa}
}

var errDown = errors.New("CA is down")

// fakeCA issues real certificates after a delay and keeps a record.
type fakeCA struct {
	*selfsigned.Authority
	ttl, delay time.Duration

	mu      sync.Mutex
	down    bool
	calls   []string // in order of their start
	times   []time.Time
	now     int
	highest int
}

func (f *fakeCA) Issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	f.mu.Lock()
	delay := f.delay
	f.calls = append(f.calls, id.ServiceAccount)
	f.times = append(f.times, time.Now())
	f.now++
	f.highest = max(f.highest, f.now)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now--
	}()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	return f.IssueFor(id, f.ttl)
}

func (f *fakeCA) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fakeCA) setDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// started returns when each call began.
func (f *fakeCA) started() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.times)
}

func (f *fakeCA) record() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// inBubble runs test in simulated time with a running cache, and checks that
// nothing of it is left at the end.
func inBubble(t *testing.T, cfg certs.CacheConfig, test func(t *testing.T, ca *fakeCA, cache *certs.Cache)) {
	synctest.Test(t, func(t *testing.T) {
		authority, err := selfsigned.Ephemeral()
		if err != nil {
			t.Fatal(err)
		}
		ca := &fakeCA{Authority: authority, ttl: 24 * time.Hour, delay: 50 * time.Millisecond}
		cache := certs.NewCache(ca, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- cache.Run(ctx) }()
		test(t, ca, cache)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func get(t *testing.T, cache *certs.Cache, id mesh.Identity) *certs.SVID {
	t.Helper()
	svid, err := cache.Certificate(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestOneRequestHoweverManyWait(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { get(t, cache, identity("cart")) })
		}
		wg.Wait()
		if calls := ca.record(); len(calls) != 1 {
			t.Errorf("%d requests", len(calls))
		}
	})
}

func TestConcurrencyAndPriorities(t *testing.T) {
	inBubble(t, certs.CacheConfig{MaxConcurrent: 2}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		for i := range 6 {
			cache.Prefetch(identity(fmt.Sprint("warm", i)))
		}
		synctest.Wait() // the first two are under way
		var wg sync.WaitGroup
		wg.Go(func() { get(t, cache, identity("urgent")) })
		wg.Go(func() { get(t, cache, identity("warm5")) })
		wg.Wait()
		time.Sleep(time.Minute)
		calls := ca.record()
		if len(calls) != 7 || ca.highest != 2 {
			t.Fatalf("calls %v, %d at once", calls, ca.highest)
		}
		if next := calls[2:4]; !slices.Contains(next, "urgent") || !slices.Contains(next, "warm5") {
			t.Errorf("waiting connections were not served first: %v", calls)
		}
		slices.Sort(calls[4:6]) // these two start at the same moment
		if rest := calls[4:]; !slices.Equal(rest, []string{"warm2", "warm3", "warm4"}) {
			t.Errorf("not first come first served: %v", rest)
		}
	})
}

func TestExpirations(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		if held := maps.Collect(cache.Expirations); len(held) != 0 {
			t.Errorf("before the first request: %v", held)
		}
		a, b := get(t, cache, identity("a")), get(t, cache, identity("b"))
		want := map[mesh.Identity]time.Time{identity("a"): a.NotAfter, identity("b"): b.NotAfter}
		if held := maps.Collect(cache.Expirations); !maps.Equal(held, want) {
			t.Errorf("%v, want %v", held, want)
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		for i := range 20 {
			cache.Prefetch(identity(fmt.Sprint("sa", i)))
		}
		time.Sleep(time.Minute)
		first := get(t, cache, identity("sa0"))
		time.Sleep(10 * time.Hour)
		if n := len(ca.record()); n != 20 {
			t.Fatalf("%d requests long before half life", n)
		}
		time.Sleep(4 * time.Hour)
		if n := len(ca.record()); n != 40 {
			t.Fatalf("%d requests after half life", n)
		}
		spread := slices.Compact(ca.started()[20:])
		if len(spread) < 10 {
			t.Errorf("renewals came at only %d moments", len(spread))
		}
		if renewed := get(t, cache, identity("sa0")); renewed.Serial == first.Serial {
			t.Error("the old certificate is still in use")
		}
	})
}

func TestFailingRenewalKeepsTheCertificateUntilItExpires(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		id := identity("cart")
		cache.Prefetch(id)
		svid := get(t, cache, id)
		ca.setDown(true)
		time.Sleep(time.Until(svid.NotAfter) - time.Second)
		if got := get(t, cache, id); got != svid {
			t.Error("another certificate while the CA is down")
		}
		var longest time.Duration
		times := ca.started()
		for i := 2; i < len(times); i++ {
			longest = max(longest, times[i].Sub(times[i-1]))
		}
		if n := len(times); n < 200 || longest > 151*time.Second {
			t.Errorf("%d attempts in 12 hours, at most %s apart", n, longest)
		}
		if wait := times[2].Sub(times[1]); wait < 800*time.Millisecond || wait > 1300*time.Millisecond {
			t.Errorf("first retry after %s", wait)
		}
		time.Sleep(2 * time.Second)
		_, err := cache.Certificate(context.Background(), id)
		if reason.Of(err) != reason.NoCertificate || !errors.Is(err, errDown) {
			t.Errorf("after expiry: %v", err)
		}
		if s := cache.Snapshot()[0]; s.State != "Unavailable: "+errDown.Error() {
			t.Errorf("state %q", s.State)
		}
		ca.setDown(false)
		time.Sleep(10 * time.Second) // demand does not wait for the 150 s to pass
		if got := get(t, cache, id); got.Serial == svid.Serial {
			t.Error("not renewed after the CA returned")
		}
	})
}

func TestFailureAnswersAtOnce(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		ca.setDown(true)
		id := identity("cart")
		for range 3 {
			start := time.Now()
			_, err := cache.Certificate(context.Background(), id)
			if reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), id.String()) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(start); took > ca.delay {
				t.Errorf("took %s", took)
			}
		}
		if n := len(ca.record()); n != 1 {
			t.Errorf("%d requests", n)
		}
		time.Sleep(time.Hour)
		if n := len(ca.record()); n > 20 {
			t.Errorf("an identity that nobody wants was asked for %d times in an hour", n)
		}
	})
}

func TestCallersMayGiveUp(t *testing.T) {
	inBubble(t, certs.CacheConfig{CallTimeout: 20 * time.Second}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		ca.delay = time.Hour
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := cache.Certificate(ctx, identity("cart")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller: %v", err)
		}
		start := time.Now()
		if _, err := cache.Certificate(context.Background(), identity("cart")); err == nil || time.Since(start) > 16*time.Second {
			t.Errorf("call that hangs: %v after %s", err, time.Since(start))
		}
	})
}

func TestForget(t *testing.T) {
	inBubble(t, certs.CacheConfig{MaxConcurrent: 1}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		get(t, cache, identity("a"))
		cache.Forget(identity("a"))
		if s := cache.Snapshot(); len(s) != 0 {
			t.Errorf("still there: %v", s)
		}
		var wg sync.WaitGroup
		for _, sa := range []string{"calling", "queued"} {
			wg.Go(func() {
				if _, err := cache.Certificate(context.Background(), identity(sa)); reason.Of(err) != reason.NoCertificate {
					t.Errorf("%s: %v", sa, err)
				}
			})
			synctest.Wait()
		}
		cache.Forget(identity("queued"))
		cache.Forget(identity("calling"))
		cache.Forget(identity("never there"))
		wg.Wait()
		get(t, cache, identity("b"))
		time.Sleep(48 * time.Hour)
		if calls := ca.record(); slices.Contains(calls, "queued") || len(calls) > 4 {
			t.Errorf("calls %v", calls)
		}
	})
}

// TestUnusedCertificatesLapse: what was asked for once is not renewed for ever.
func TestUnusedCertificatesLapse(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		get(t, cache, identity("once")) // counts as use, so it is renewed once
		time.Sleep(14 * time.Hour)
		if n := len(ca.record()); n != 2 {
			t.Errorf("%d requests after the first half life", n)
		}
		time.Sleep(14 * time.Hour) // past half life, before expiry, unused
		get(t, cache, identity("once"))
		time.Sleep(time.Minute)
		if n := len(ca.record()); n != 3 {
			t.Errorf("%d requests: use did not bring the overdue renewal", n)
		}
		time.Sleep(100 * time.Hour)
		if s := cache.Snapshot(); len(s) != 0 || len(ca.record()) != 3 {
			t.Errorf("%d requests, state %v", len(ca.record()), s)
		}
	})
}

func TestWaitersEndWithTheCache(t *testing.T) {
	inBubble(t, certs.CacheConfig{MaxConcurrent: 1}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		ca.delay = time.Hour
		for _, sa := range []string{"calling", "queued"} {
			go func() {
				if _, err := cache.Certificate(context.Background(), identity(sa)); err == nil {
					t.Error("no error")
				}
			}()
		}
		synctest.Wait()
	})
}

// TestRandomUse: whatever callers do while the CA comes and goes, callers get a
// valid certificate of their own or an error, and the CA is not overrun.
func TestRandomUse(t *testing.T) {
	inBubble(t, certs.CacheConfig{MaxConcurrent: 3, CallTimeout: time.Second}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		var wg sync.WaitGroup
		for worker := range 8 {
			rng := rand.New(rand.NewPCG(1, uint64(worker)))
			wg.Go(func() {
				for range 300 {
					id := identity(fmt.Sprint("sa", rng.IntN(10)))
					switch rng.IntN(8) {
					case 0:
						cache.Forget(id)
					case 1:
						cache.Prefetch(id)
					case 2:
						ca.setDown(rng.IntN(2) == 0)
					case 3:
						cache.Snapshot()
					default:
						ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(200))*time.Millisecond)
						svid, err := cache.Certificate(ctx, id)
						cancel()
						if err == nil && (svid.ID != id || time.Now().After(svid.NotAfter)) || err != nil && reason.Of(err) != reason.NoCertificate {
							t.Errorf("%v, %v for %s", svid, err, id)
						}
					}
					time.Sleep(time.Duration(rng.ExpFloat64() * float64(30*time.Minute)))
				}
			})
		}
		wg.Wait()
		ca.mu.Lock()
		if ca.highest > 3 {
			t.Errorf("%d calls at once", ca.highest)
		}
		ca.mu.Unlock()
		ca.setDown(false)
		time.Sleep(time.Minute)
		for i := range 10 {
			get(t, cache, identity(fmt.Sprint("sa", i)))
		}
	})
}

type wrongIssuer struct{ *selfsigned.Authority }

func (w wrongIssuer) Issue(context.Context, mesh.Identity) (*certs.SVID, error) {
	return w.IssueFor(identity("other"), time.Hour)
}

func TestIssuerMustAnswerForTheIdentity(t *testing.T) {
	t.Parallel()
	authority, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	var issued []error
	cache := certs.NewCache(wrongIssuer{authority}, certs.CacheConfig{
		Issued: func(_ mesh.Identity, _ time.Duration, err error) { issued = append(issued, err) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	if _, err := cache.Certificate(ctx, identity("cart")); err == nil {
		t.Error("a certificate for somebody else was accepted")
	}
	cancel()
	<-done
	if len(issued) == 0 || issued[0] == nil {
		t.Errorf("metrics were told %v", issued)
	}
}

func TestSnapshotShape(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		svid := get(t, cache, identity("b"))
		get(t, cache, identity("a"))
		ca.delay = time.Hour
		cache.Prefetch(identity("c"))
		text, err := json.Marshal(cache.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		var got []struct {
			Identity, State      string
			CertChain, RootCerts []struct{ PEM, SerialNumber, ValidFrom, ExpirationTime string }
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if len(got) != 3 || got[1].Identity != identity("b").String() || got[1].State != "Available" || got[2].State != "Initializing" {
			t.Fatalf("%s", text)
		}
		leaf := got[1].CertChain[0]
		if leaf.SerialNumber != svid.Serial || leaf.ExpirationTime != svid.NotAfter.UTC().Format(time.RFC3339) || leaf.PEM == "" {
			t.Errorf("leaf %+v", leaf)
		}
		if len(got[1].CertChain) != 2 || len(got[1].RootCerts) != 1 {
			t.Errorf("%d in chain, %d roots", len(got[1].CertChain), len(got[1].RootCerts))
		}
	})
}
