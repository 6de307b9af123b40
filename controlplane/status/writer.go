package status

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// API is what a Writer needs of an API server.
type API interface {
	// Watch keeps store as the API server has the objects of a kind, until ctx ends.
	Watch(ctx context.Context, kind source.Kind, store cache.ReflectorStore)
	// Patch merges patch into the status of the object, and returns what it is then.
	Patch(ctx context.Context, kind source.Kind, seen *Seen, patch []byte) (*Seen, error)
}

// WriterConfig configures a Writer.
type WriterConfig struct {
	API API
	// Found returns what there is to say about an object; known is false while it has
	// not been judged.
	Found   func(source.Key) (f Found, known bool)
	Keys    func() []source.Key // of all objects that are judged
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil = none
}

// Pauses after a status could not be written, and how many are written at a time.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Minute
	writers  = 4
)

// Writer writes what was found about objects into their status, while Run runs.
//
//	what was found changed ─ Changed ─┐
//	                                  ├─▶ queue, each object once ─▶ Desired ─ differs ─▶ Patch
//	the object changed ──── watch ────┘          ▲                                          │
//	                                             └───── later, and later ── failed ─────────┘
//
// It watches the objects, status included, so that it knows what is there: a status
// that says what it should costs no request, and one that somebody has damaged is
// repaired. What fails is tried again by itself, and holds up nothing else. A kind
// is watched from the first object of it that was judged.
//
// A Writer is safe for concurrent use; Run runs once at a time.
type Writer struct {
	cfg    WriterConfig
	writes *prometheus.CounterVec

	mu   sync.Mutex
	term *term // nil while Run does not run
}

// term is one run of a Writer.
type term struct {
	ctx     context.Context // of what it starts
	queue   workqueue.TypedRateLimitingInterface[source.Key]
	seen    map[source.Key]*Seen
	failed  map[source.Key]string // what was said in the log
	watched map[source.Kind]bool
	done    sync.WaitGroup
}

// NewWriter returns a Writer that writes nothing before Run.
func NewWriter(cfg WriterConfig) *Writer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Writer{cfg: cfg, writes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "culvert_controlplane_status_writes_total", Help: "Writes of the status of objects, by kind and result (written, conflict, failed)."},
		[]string{"kind", "result"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(w.writes)
	}
	return w
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &term{ctx: ctx, seen: map[source.Key]*Seen{}, failed: map[source.Key]string{}, watched: map[source.Kind]bool{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[source.Key](minPause, maxPause))}
	w.mu.Lock()
	w.term = t
	w.mu.Unlock()
	for range writers {
		t.done.Go(func() { w.work(t) })
	}
	w.Changed(w.cfg.Keys()...)
	<-ctx.Done()
	w.mu.Lock()
	w.term = nil
	w.mu.Unlock()
	t.queue.ShutDown()
	t.done.Wait()
	return nil
}

// Changed tells that there may be something else to say about objects. It returns
// at once.
func (w *Writer) Changed(keys ...source.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.term
	if t == nil {
		return
	}
	for _, key := range keys {
		if _, ours := resources[key.Kind]; !ours {
			continue
		}
		if !t.watched[key.Kind] {
			t.watched[key.Kind] = true
			t.done.Go(func() { w.cfg.API.Watch(t.ctx, key.Kind, &statuses{writer: w, term: t, kind: key.Kind}) })
		}
		if t.seen[key] != nil {
			t.queue.Add(key)
		}
	}
}

// work writes what is queued until the queue is shut down.
func (w *Writer) work(t *term) {
	for {
		key, ended := t.queue.Get()
		if ended {
			return
		}
		if err := w.write(t, key); err != nil {
			t.queue.AddRateLimited(key)
		} else {
			t.queue.Forget(key)
		}
		t.queue.Done(key)
	}
}

// write brings the status of one object up to date. A panic is a failure of that
// object: none that somebody writes ends the control plane.
func (w *Writer) write(t *term, key source.Key) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			w.writes.WithLabelValues(string(key.Kind), "failed").Inc()
			w.complain(t, key, err)
		}
	}()
	w.mu.Lock()
	seen := t.seen[key]
	w.mu.Unlock()
	found, known := w.cfg.Found(key)
	if seen == nil || !known {
		return nil
	}
	patch := Desired(key.Kind, seen, found, time.Now())
	if patch == nil {
		return nil
	}
	after, err := w.cfg.API.Patch(t.ctx, key.Kind, seen, patch)
	switch {
	case t.ctx.Err() != nil:
		return nil
	case err == nil:
		w.writes.WithLabelValues(string(key.Kind), "written").Inc()
		w.wrote(t, key, seen, after)
		return nil
	case apierrors.IsNotFound(err): // it is being removed; the watch tells
		return nil
	case apierrors.IsConflict(err): // somebody else wrote meanwhile; the watch brings what
		w.writes.WithLabelValues(string(key.Kind), "conflict").Inc()
		return err
	}
	w.writes.WithLabelValues(string(key.Kind), "failed").Inc()
	w.complain(t, key, err)
	return fmt.Errorf("write status of %s: %w", key, err)
}

// wrote notes what an object is after it was written, unless the watch has
// brought something newer already.
func (w *Writer) wrote(t *term, key source.Key, before, after *Seen) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(t.failed, key)
	if t.seen[key] == before {
		t.seen[key] = after
		t.queue.Add(key) // what was found may have changed since
	}
}

// complain logs a failure once.
func (w *Writer) complain(t *term, key source.Key, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text := err.Error(); t.failed[key] != text {
		t.failed[key] = text
		w.cfg.Log.Warn("status is not written", "object", key.String(), "err", err)
	}
}

// statuses is a reflector's store of the objects of one kind.
type statuses struct {
	writer *Writer
	term   *term
	kind   source.Kind
}

var _ cache.TransformingStore = (*statuses)(nil)

// Transformer implements cache.TransformingStore: of what it does not read the
// Writer keeps nothing.
func (s *statuses) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if o, ok := obj.(*Seen); ok {
			o.trim()
		}
		return obj, nil
	}
}

func (s *Seen) trim() {
	s.Labels, s.Annotations, s.ManagedFields, s.OwnerReferences, s.Finalizers = nil, nil, nil, nil, nil
}

// Add implements cache.ReflectorStore.
func (s *statuses) Add(obj any) error {
	s.writer.mu.Lock()
	defer s.writer.mu.Unlock()
	_, err := s.setLocked(obj)
	return err
}

// Update implements cache.ReflectorStore.
func (s *statuses) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *statuses) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	s.writer.mu.Lock()
	defer s.writer.mu.Unlock()
	o, ok := obj.(*Seen)
	if !ok {
		return fmt.Errorf("%s: the API server sent another type", s.kind)
	}
	s.dropLocked(source.Key{Kind: s.kind, Namespace: o.Namespace, Name: o.Name})
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *statuses) Replace(list []any, _ string) error {
	s.writer.mu.Lock()
	defer s.writer.mu.Unlock()
	there := make(map[source.Key]bool, len(list))
	for _, obj := range list {
		key, err := s.setLocked(obj)
		if err != nil {
			return err
		}
		there[key] = true
	}
	for key := range s.term.seen {
		if key.Kind == s.kind && !there[key] {
			s.dropLocked(key)
		}
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *statuses) Resync() error { return nil }

func (s *statuses) setLocked(obj any) (source.Key, error) {
	o, ok := obj.(*Seen)
	if !ok {
		return source.Key{}, fmt.Errorf("%s: the API server sent another type", s.kind)
	}
	key := source.Key{Kind: s.kind, Namespace: o.Namespace, Name: o.Name}
	s.term.seen[key] = o
	s.term.queue.Add(key)
	return key, nil
}

func (s *statuses) dropLocked(key source.Key) {
	delete(s.term.seen, key)
	delete(s.term.failed, key)
	s.term.queue.Forget(key)
}
