// Package trust puts the mesh's roots into each namespace, as ConfigMap
// istio-ca-root-cert, where pods mount what they verify the control plane and each
// other by.
//
//	Namespaces ────────────────┐ there, and not being deleted
//	ConfigMaps of that name ───┼─▶ wrong? ─▶ queue ─▶ one server-side apply each
//	Authority: roots changed ──┘
//
// Of each ConfigMap only a hash is held. One that somebody else keeps changing is
// put right at once the first time, and then ever more slowly.
//
// Run is called once at a time, on the leader.
package trust

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Name is the name of the ConfigMaps, and Key what holds the roots in them. They
// are Istio's.
const (
	Name = "istio-ca-root-cert"
	Key  = "root-cert.pem"
)

const (
	manager  = "culvert-controlplane" // of the fields that are applied
	workers  = 8
	callTime = 10 * time.Second
	calm     = 10 * time.Second // a ConfigMap that is wrong again within that is somebody else's doing
	minRetry = 50 * time.Millisecond
	maxRetry = time.Minute
)

// Config configures Bundles.
type Config struct {
	Client    kubernetes.Interface
	Authority *selfsigned.Authority
	Log       *slog.Logger          // nil = none
	Metrics   prometheus.Registerer // nil = none
}

// Bundles keeps the roots in every namespace.
type Bundles struct {
	cfg    Config
	writes *prometheus.CounterVec
}

// New returns Bundles that ask nothing before Run.
func New(cfg Config) *Bundles {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bundles{cfg: cfg, writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "culvert_controlplane_trust_bundle_writes_total",
		Help: "Writes of the mesh's roots into namespaces."}, []string{"result"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(b.writes)
	}
	return b
}

// Run keeps the roots in every namespace, until ctx ends.
func (b *Bundles) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(b.cfg.Log.Handler()))
	r := newRound(b)
	defer r.queue.ShutDown()
	var g run.Group
	g.Add("roots", r.followRoots)
	g.Add("watch namespaces", func(ctx context.Context) error { return r.watchNamespaces(ctx, b.cfg.Client) })
	g.Add("watch configmaps", func(ctx context.Context) error { return r.watchConfigMaps(ctx, b.cfg.Client) })
	for range workers {
		g.Add("write", r.work)
	}
	g.Add("end", func(ctx context.Context) error { <-ctx.Done(); r.queue.ShutDown(); return nil })
	return g.Run(ctx)
}

// hash identifies the content of a ConfigMap; the zero hash is no ConfigMap.
type hash [sha256.Size]byte

func hashOf(roots string) hash { return sha256.Sum256([]byte(roots)) }

// round is one leader's time.
type round struct {
	*Bundles
	queue workqueue.TypedRateLimitingInterface[string] // of namespaces

	mu         sync.Mutex
	roots      string
	want       hash
	namespaces map[string]bool // false: being deleted
	held       map[string]hash // of the ConfigMaps, by namespace
	listed     bool            // held is complete
	written    map[string]time.Time
}

func newRound(b *Bundles) *round {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[string](minRetry, maxRetry)
	return &round{Bundles: b, queue: workqueue.NewTypedRateLimitingQueue[string](limit),
		namespaces: map[string]bool{}, held: map[string]hash{}, written: map[string]time.Time{}}
}

// wrong decides whether a namespace's ConfigMap is to be written: known is whether
// the namespace is there and not being deleted.
func wrong(known bool, held, want hash) bool { return known && want != hash{} && held != want }

// wrongLocked is wrong for a namespace. Nothing is before all is known.
func (r *round) wrongLocked(namespace string) bool {
	return r.listed && wrong(r.namespaces[namespace], r.held[namespace], r.want)
}

// lookLocked queues a namespace when it is wrong: soon when it was right for a
// while.
func (r *round) lookLocked(namespace string) {
	if !r.wrongLocked(namespace) {
		return
	}
	if time.Since(r.written[namespace]) < calm {
		r.queue.AddRateLimited(namespace)
		return
	}
	r.queue.Forget(namespace)
	r.queue.Add(namespace)
}

// lookAllLocked is lookLocked for every namespace, at once.
func (r *round) lookAllLocked() {
	for namespace := range r.namespaces {
		if r.wrongLocked(namespace) {
			r.queue.Add(namespace)
		}
	}
}

// followRoots takes the roots over from the authority, until ctx ends.
func (r *round) followRoots(ctx context.Context) error {
	for {
		changed := r.cfg.Authority.Changed()
		if roots := string(r.cfg.Authority.RootsPEM()); roots != "" {
			r.mu.Lock()
			r.roots, r.want = roots, hashOf(roots)
			r.lookAllLocked()
			r.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// work writes what is queued until the queue is shut down.
func (r *round) work(ctx context.Context) error {
	for {
		namespace, over := r.queue.Get()
		if over {
			return nil
		}
		r.write(ctx, namespace)
		r.queue.Done(namespace)
	}
}

// write puts a namespace's ConfigMap right, if it is still wrong.
func (r *round) write(ctx context.Context, namespace string) {
	r.mu.Lock()
	due, roots := r.wrongLocked(namespace), r.roots
	r.mu.Unlock()
	if !due || ctx.Err() != nil {
		return
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	m := applycore.ConfigMap(Name, namespace).WithLabels(map[string]string{"istio.io/config": "true"}).WithData(map[string]string{Key: roots})
	_, err := r.cfg.Client.CoreV1().ConfigMaps(namespace).Apply(call, m, metav1.ApplyOptions{FieldManager: manager, Force: true})
	switch {
	case err == nil:
		r.writes.WithLabelValues("ok").Inc()
		r.mu.Lock()
		r.written[namespace] = time.Now()
		r.mu.Unlock()
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // it went meanwhile
	case errors.Is(ctx.Err(), context.Canceled):
	default:
		r.writes.WithLabelValues("error").Inc()
		r.cfg.Log.Warn("the mesh's roots were not written", "namespace", namespace, "configmap", Name, "err", err)
		r.queue.AddRateLimited(namespace)
	}
}
