package proxy

import (
	"testing"
	"time"
)

// One failure among many connections is tried again; when every connection fails,
// retries are a fraction of the connections, and come back when it is over.
func TestRetries(t *testing.T) {
	t.Parallel()
	var r retries
	now := time.Unix(1_000_000, 0)
	made := 0
	for range 10_000 { // in one moment
		r.earn()
		if !r.left(now) {
			continue
		}
		if !r.spend(now) {
			t.Fatal("a retry that was left cannot be made")
		}
		made++
	}
	if want := maxRetries + 10_000/5; made < want-1 || made > want {
		t.Errorf("%d retries of 10000 failures, want %d", made, want)
	}
	for r.spend(now) {
	}
	if r.left(now) {
		t.Error("more than are left")
	}
	now = now.Add(time.Second)
	made = 0
	for r.spend(now) {
		made++
	}
	if made != retriesPerSecond {
		t.Errorf("%d a second later", made)
	}
	now = now.Add(time.Hour)
	for made = 0; r.spend(now); made++ {
	}
	if made != maxRetries {
		t.Errorf("%d an hour later", made)
	}
	if r.spend(now.Add(-time.Minute)) {
		t.Error("a clock that goes back earns something")
	}
}
