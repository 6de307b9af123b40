package xds_test

import (
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

// TestRestore: a client that was left what its predecessor held asks for the
// differences only, and hears of what was removed meanwhile.
func TestRestore(t *testing.T) {
	t.Parallel()
	s := xdstest.New(t, nil)
	s.Set(typeA, "same", "1", str("one"))
	s.Set(typeA, "changed", "2", str("two"))
	h := newHeld()
	h.values = map[string]string{"same": "one", "changed": "one", "removed": "one"}
	before := time.Unix(1e9, 0)
	var applied atomic.Int32
	cfg := xds.Config{Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, Applied: func(string) { applied.Add(1) }}
	old := map[string]string{"same": "1", "changed": "1", "removed": "1"}
	c, ctx := startWith(t, cfg, func(c *xds.Client) {
		c.Restore(typeA, old, before)
		c.Restore(typeB, old, before) // not subscribed to
		if got := c.Heard(); !got.Equal(before) {
			t.Errorf("heard at %s, want when the predecessor did", got)
		}
	})
	first := s.Await(ctx, 0, isFirst)
	if !maps.Equal(first.GetInitialResourceVersions(), old) {
		t.Errorf("told %v, want %v", first.GetInitialResourceVersions(), old)
	}
	h.await(t, ctx, map[string]string{"same": "one", "changed": "two"})
	snapshot(t, ctx, c)
	if calls := h.log(); len(calls) != 1 || calls[0] != "-removed +changed" {
		t.Errorf("handled %q, want the differences", calls)
	}
	if got, want := c.Held(typeA), map[string]string{"same": "1", "changed": "2"}; !maps.Equal(got, want) || c.Held(typeB) != nil {
		t.Errorf("holds %v, want %v", got, want)
	}
	if applied.Load() == 0 || c.Away() != 0 || time.Since(c.Heard()) > time.Hour {
		t.Errorf("applied %d, away %s, heard %s", applied.Load(), c.Away(), c.Heard())
	}
	s.Stop()
	for c.Away() == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("not away without a server")
		case <-time.After(time.Millisecond):
		}
	}
	if heard := c.Heard(); heard.Equal(before) || heard.After(time.Now()) {
		t.Errorf("heard at %s, want the end of the stream", heard)
	}
}
