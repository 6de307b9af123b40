package certs_test

import (
	"context"
	"errors"
	"fmt"
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

// streamer is an issuer that renews by itself when told.
type streamer struct {
	*selfsigned.Authority
	receive func(*certs.SVID)

	mu       sync.Mutex
	asked    []mesh.Identity
	released []mesh.Identity
	during   func() // runs within a call
	fail     error
}

func (s *streamer) Deliver(receive func(*certs.SVID)) { s.receive = receive }

func (s *streamer) Release(id mesh.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = append(s.released, id)
}

func (s *streamer) Issue(_ context.Context, id mesh.Identity) (*certs.SVID, error) {
	s.mu.Lock()
	s.asked = append(s.asked, id)
	fail, during := s.fail, s.during
	s.mu.Unlock()
	if fail != nil {
		return nil, fail
	}
	svid, err := s.IssueFor(id, time.Hour)
	if during != nil {
		during()
	}
	return svid, err
}

func (s *streamer) counts() (asked, released int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked), len(s.released)
}

// renew delivers a certificate of an hour.
func (s *streamer) renew(t *testing.T, id mesh.Identity) *certs.SVID {
	t.Helper()
	svid, err := s.IssueFor(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.receive(svid)
	return svid
}

// streaming runs test in simulated time with a cache over a streamer.
func streaming(t *testing.T, test func(t *testing.T, s *streamer, cache *certs.Cache)) {
	synctest.Test(t, func(t *testing.T) {
		s := &streamer{Authority: authority(t)}
		cache := certs.NewCache(s, certs.CacheConfig{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- cache.Run(ctx) }()
		test(t, s, cache)
		cancel()
		<-done
	})
}

func TestDeliveredCertificatesServeAtOnce(t *testing.T) {
	streaming(t, func(t *testing.T, s *streamer, cache *certs.Cache) {
		cart := identity("cart")
		cache.Prefetch(cart)
		first := get(t, cache, cart)
		for range 5 {
			time.Sleep(50 * time.Minute)
			if got := get(t, cache, cart); got.Serial != first.Serial {
				t.Error("a certificate changed by itself")
			}
			first = s.renew(t, cart)
			if got := get(t, cache, cart); got != first {
				t.Errorf("got %s, want what was delivered, %s", got.Serial, first.Serial)
			}
		}
		if asked, _ := s.counts(); asked != 1 {
			t.Errorf("asked %d times for what is delivered", asked)
		}
		cache.Forget(cart)
		if _, released := s.counts(); released != 1 {
			t.Errorf("released %d times", released)
		}
		s.renew(t, cart)
		if n := len(cache.Snapshot()); n != 0 {
			t.Errorf("%d certificates after it was forgotten", n)
		}
	})
}

// TestNothingDelivered: a certificate that was not renewed serves until it ends,
// and then the error says why.
func TestNothingDelivered(t *testing.T) {
	streaming(t, func(t *testing.T, s *streamer, cache *certs.Cache) {
		cart := identity("cart")
		cache.Prefetch(cart)
		get(t, cache, cart)
		s.mu.Lock()
		s.fail = errors.New("the entry is gone")
		s.mu.Unlock()
		time.Sleep(59 * time.Minute)
		get(t, cache, cart)
		time.Sleep(2 * time.Minute)
		if _, err := cache.Certificate(context.Background(), cart); reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), "the entry is gone") {
			t.Errorf("got %v", err)
		}
		s.renew(t, cart)
		get(t, cache, cart)
	})
}

// TestDeliveredDuringTheCall: the answer of a call never replaces what came later.
func TestDeliveredDuringTheCall(t *testing.T) {
	streaming(t, func(t *testing.T, s *streamer, cache *certs.Cache) {
		cart := identity("cart")
		var newer *certs.SVID
		s.during = func() { newer = s.renew(t, cart) }
		if got := get(t, cache, cart); got != newer {
			t.Errorf("got %s, want the one that was delivered meanwhile, %s", got.Serial, newer.Serial)
		}
	})
}

// TestUnusedStreamsEnd: an identity that nobody needs is not followed for ever.
func TestUnusedStreamsEnd(t *testing.T) {
	streaming(t, func(t *testing.T, s *streamer, cache *certs.Cache) {
		cart := identity("cart")
		get(t, cache, cart)
		s.renew(t, cart) // it was used since the first
		s.renew(t, cart) // and not since this one
		if _, released := s.counts(); released != 1 || len(cache.Snapshot()) != 0 {
			t.Errorf("released %d times, %d held", released, len(cache.Snapshot()))
		}
	})
}

// TestTakenOverStreamsBegin: what a predecessor held is followed at once.
func TestTakenOverStreamsBegin(t *testing.T) {
	streaming(t, func(t *testing.T, s *streamer, cache *certs.Cache) {
		cart := identity("cart")
		held := get(t, cache, cart)
		next := &streamer{Authority: s.Authority, fail: errors.New("agent is away")}
		successor := certs.NewCache(next, certs.CacheConfig{})
		if err := successor.Import(export(t, cache)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- successor.Run(ctx) }()
		synctest.Wait()
		if asked, _ := next.counts(); asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		if got := get(t, successor, cart); got.Serial != held.Serial {
			t.Errorf("got %s, want what was taken over", got.Serial)
		}
		cancel()
		<-done
	})
}

// TestSilentCA: once the CA is known not to answer, new identities fail within a
// second instead of waiting for the whole call, and work when it is back.
func TestSilentCA(t *testing.T) {
	inBubble(t, certs.CacheConfig{}, func(t *testing.T, ca *fakeCA, cache *certs.Cache) {
		held := get(t, cache, identity("held"))
		ca.setDelay(time.Hour) // it does not even refuse
		start := time.Now()
		fails := func(sa string, limit time.Duration) {
			t.Helper()
			before := time.Now()
			_, err := cache.Certificate(context.Background(), identity(sa))
			if reason.Of(err) != reason.NoCertificate || time.Since(before) > limit {
				t.Errorf("%s after %s: %v after %s, want an error within %s", sa, time.Since(start), err, time.Since(before), limit)
			}
		}
		fails("first", 10*time.Second) // by this the cache learns of it
		for i := range 20 {
			fails(fmt.Sprint("later", i), time.Second)
			fails("first", time.Second)
			time.Sleep(3 * time.Second)
		}
		if got := get(t, cache, identity("held")); got.Serial != held.Serial {
			t.Error("what is held does not serve")
		}
		ca.setDelay(time.Millisecond)
		time.Sleep(30 * time.Second) // calls under way fail, back-offs pass
		get(t, cache, identity("first"))
		get(t, cache, identity("new"))
	})
}
