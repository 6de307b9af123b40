package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

// api is an API server in memory: objects with versions, told to the watch in order.
type api struct {
	mu      sync.Mutex
	objects map[string]*Seen
	store   cache.ReflectorStore
	writes  map[string]int
	refuse  map[string]error  // by name: what a write is answered with
	meddle  func(name string) // before a write, without the lock
	slow    bool              // the watch does not tell of writes
}

func newAPI(names ...string) *api {
	a := &api{objects: map[string]*Seen{}, writes: map[string]int{}, refuse: map[string]error{}}
	for _, name := range names {
		a.objects[name] = &Seen{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", ResourceVersion: "1", Generation: 1}}
	}
	return a
}

func (a *api) Watch(ctx context.Context, _ source.Kind, store cache.ReflectorStore) {
	a.mu.Lock()
	var list []any
	for _, o := range a.objects {
		list = append(list, o)
	}
	_ = store.Replace(list, "1")
	a.store = store
	a.mu.Unlock()
	<-ctx.Done()
}

func (a *api) Patch(_ context.Context, _ source.Kind, seen *Seen, patch []byte) (*Seen, error) {
	if a.meddle != nil {
		a.meddle(seen.Name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writes[seen.Name]++
	if err := a.refuse[seen.Name]; err != nil {
		return nil, err
	}
	var p struct {
		Metadata struct{ ResourceVersion string }
		Status   seenStatus
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, err
	}
	have := a.objects[seen.Name]
	if have == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, seen.Name)
	}
	if p.Metadata.ResourceVersion != have.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{}, seen.Name, errors.New("changed"))
	}
	return a.putLocked(seen.Name, func(s *Seen) { s.Status = p.Status }), nil
}

// putLocked makes a new version of an object.
func (a *api) putLocked(name string, change func(*Seen)) *Seen {
	next := *a.objects[name]
	version, _ := strconv.Atoi(next.ResourceVersion)
	next.ResourceVersion = strconv.Itoa(version + 1)
	change(&next)
	a.objects[name] = &next
	if a.store != nil && !a.slow {
		_ = a.store.Update(&next)
	}
	return &next
}

func (a *api) put(name string, change func(*Seen)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.putLocked(name, change)
}

// reason returns the reason of an object's only condition.
func (a *api) reason(t *testing.T, name string) string {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	conditions := a.objects[name].Status.Conditions
	if len(conditions) != 1 {
		return fmt.Sprintf("%d conditions", len(conditions))
	}
	var c condition
	if err := json.Unmarshal(conditions[0], &c); err != nil {
		t.Fatal(err)
	}
	return c.Reason
}

// judge is what was found about policies; those that have not been judged are not
// in it.
type judge struct {
	mu    sync.Mutex
	found map[string]bool // by name: whether it is in force
}

func (j *judge) set(name string, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.found[name] = ok
}

func (j *judge) Found(key source.Key) (Found, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ok, known := j.found[key.Name]
	c := compile.Condition{Type: compile.ZtunnelAccepted, Status: ok}
	if !ok {
		c.Reason = "invalid value"
	}
	return Found{Conditions: []compile.Condition{c}}, known
}

func (j *judge) Keys() []source.Key {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []source.Key
	for name := range j.found {
		out = append(out, policyKey(name))
	}
	return out
}

func policyKey(name string) source.Key {
	return source.Key{Kind: source.KindAuthorizationPolicy, Namespace: "shop", Name: name}
}

// lead runs a Writer until the test function has returned.
func lead(t *testing.T, a *api, j *judge, test func(w *Writer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(WriterConfig{API: a, Found: j.Found, Keys: j.Keys})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		synctest.Wait()
		test(w)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(2 * maxPause) // what the queue still waits for ends
	})
}

func TestWriter(t *testing.T) {
	t.Parallel()
	a, j := newAPI("good", "bad", "unjudged"), &judge{found: map[string]bool{"good": true, "bad": false}}
	lead(t, a, j, func(w *Writer) {
		expect := func(step, name, reason string, writes int) {
			t.Helper()
			synctest.Wait()
			if got := a.reason(t, name); got != reason || a.writes[name] != writes {
				t.Errorf("%s: %s has %s after %d writes, want %s after %d", step, name, got, a.writes[name], reason, writes)
			}
		}
		expect("at first", "good", "Accepted", 1)
		expect("at first", "bad", "Invalid", 1)
		expect("at first", "unjudged", "0 conditions", 0)

		w.Changed(policyKey("good"), policyKey("good"), source.Key{Kind: source.KindPod, Name: "good"})
		expect("nothing changed", "good", "Accepted", 1)

		j.set("good", false)
		w.Changed(policyKey("good"))
		expect("found something else", "good", "Invalid", 2)

		j.set("unjudged", true)
		w.Changed(policyKey("unjudged"))
		expect("judged", "unjudged", "Accepted", 1)

		a.put("bad", func(s *Seen) { s.Status = seenStatus{} })
		expect("damaged by somebody", "bad", "Invalid", 2)
	})
}

// TestWriterAlone: a status that cannot be written holds up no other, and is tried
// again; what conflicts is written when the watch has brought what is there.
func TestWriterAlone(t *testing.T) {
	t.Parallel()
	a, j := newAPI("refused", "other", "contended"), &judge{found: map[string]bool{"refused": true, "other": true, "contended": true}}
	a.refuse["refused"] = apierrors.NewForbidden(schema.GroupResource{}, "refused", errors.New("no"))
	var once sync.Once
	a.meddle = func(name string) {
		if name == "contended" {
			once.Do(func() { a.put(name, func(s *Seen) { s.Status.Parents = []json.RawMessage{[]byte(`{}`)} }) })
		}
	}
	lead(t, a, j, func(*Writer) {
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := a.reason(t, "other"); got != "Accepted" {
			t.Errorf("other: %s", got)
		}
		if got := a.reason(t, "contended"); got != "Accepted" || a.writes["contended"] != 2 {
			t.Errorf("contended: %s after %d writes", got, a.writes["contended"])
		}
		if n := a.writes["refused"]; n < 3 || n > 10 { // 0.1 s, 0.2 s, 0.4 s …
			t.Errorf("refused: %d writes in 10 s", n)
		}
		a.mu.Lock()
		delete(a.refuse, "refused")
		a.mu.Unlock()
		time.Sleep(time.Minute)
		if got := a.reason(t, "refused"); got != "Accepted" {
			t.Errorf("refused: %s when no longer refused", got)
		}
	})
}

// TestWriterMany: ten thousand objects whose status says what it should cost no
// write, whoever leads next; and a change that comes before the watch has told of
// the last write is written onto that.
func TestWriterMany(t *testing.T) {
	t.Parallel()
	names := make([]string, 10_000)
	j := &judge{found: map[string]bool{}}
	for i := range names {
		names[i] = fmt.Sprintf("p%d", i)
		j.found[names[i]] = true
	}
	a := newAPI(names...)
	total := func() (n int) {
		for _, w := range a.writes {
			n += w
		}
		return n
	}
	lead(t, a, j, func(*Writer) {
		if n := total(); n != len(names) {
			t.Errorf("%d writes of %d", n, len(names))
		}
	})
	lead(t, a, j, func(w *Writer) {
		w.Changed(j.Keys()...)
		synctest.Wait()
		if n := total() - len(names); n != 0 {
			t.Errorf("%d writes of the next leader", n)
		}
		a.mu.Lock()
		a.slow = true
		a.mu.Unlock()
		for _, ok := range []bool{false, true, false} {
			j.set("p1", ok)
			w.Changed(policyKey("p1"))
			synctest.Wait()
		}
		if got := a.reason(t, "p1"); got != "Invalid" || a.writes["p1"] != 4 {
			t.Errorf("p1: %s after %d writes", got, a.writes["p1"])
		}
	})
}
