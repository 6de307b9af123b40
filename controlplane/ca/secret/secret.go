// Package secret keeps the mesh's certificate authority in Secrets of the mesh's
// own namespace, where all replicas of the control plane find it.
//
//	cacerts          users plug it in ─┐ wins
//	                                   ├─▶ choose ─▶ Authority.Use, on every replica
//	istio-ca-secret  made by whoever  ─┘
//	                 is first; what is due of it (rotation) is done by the leader
//
// Both are watched, so a change is in force within moments and without a restart.
// What cannot work is refused with its reason, and the last good authority signs
// on; a replica that has none yet signs nothing and is not ready. That cacerts
// disappears is no reason to sign with another root: the last good one stays as
// long as the replica runs.
//
// Replicas that start together end with one root: the API server lets only one of
// them create the Secret, and the others take it. A change of it is of one version
// and is lost against another one.
//
// Run and Lead may run at the same time, each once.
package secret

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Names of the Secrets. They are Istio's.
const (
	DefaultPlugged = "cacerts"
	DefaultOwn     = "istio-ca-secret"
)

// Waits.
const (
	minRetry   = time.Second
	maxRetry   = time.Minute
	checkEvery = time.Hour           // for a rotation that is due; lives are far longer
	callTime   = 10 * time.Second    // of one call
	soon       = 30 * 24 * time.Hour // an authority that ends within is warned of
)

// Config configures a Keeper.
type Config struct {
	Client      kubernetes.Interface
	Namespace   string
	Plugged     string // "" = DefaultPlugged
	Own         string // "" = DefaultOwn
	TrustDomain string
	Authority   *selfsigned.Authority // of selfsigned.New; gets what the Secrets hold
	Log         *slog.Logger          // nil = none
	Metrics     prometheus.Registerer // nil = none
}

// Keeper gives an authority what it signs with.
type Keeper struct {
	cfg     Config
	changed chan struct{} // holds one token while there is something to look at
	owned   chan struct{} // likewise, when the self-made Secret has changed
	refused prometheus.Gauge

	mu      sync.Mutex
	plugged slot
	own     slot
	used    from             // where what is in force comes from
	made    selfsigned.State // the last good self-made state
	told    string           // the refusal that was logged last
}

// slot is one of the Secrets as it is in the API server.
type slot struct {
	known  bool // the first list has come
	secret *corev1.Secret
}

// New returns a Keeper that asks nothing before Run.
func New(cfg Config) *Keeper {
	if cfg.Plugged == "" {
		cfg.Plugged = DefaultPlugged
	}
	if cfg.Own == "" {
		cfg.Own = DefaultOwn
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, changed: make(chan struct{}, 1), owned: make(chan struct{}, 1)}
	k.refused = prometheus.NewGauge(prometheus.GaugeOpts{Name: "culvert_controlplane_ca_refused",
		Help: "1 while what the certificate authority's Secret holds is not in force because something is wrong with it, else 0."})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(k.refused)
	}
	return k
}

// Run keeps the authority at what the Secrets hold, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(k.cfg.Log.Handler()))
	var g run.Group
	g.Add("watch "+k.cfg.Plugged, func(ctx context.Context) error { return k.watch(ctx, k.cfg.Plugged, &k.plugged, k.changed) })
	g.Add("watch "+k.cfg.Own, func(ctx context.Context) error { return k.watch(ctx, k.cfg.Own, &k.own, k.changed, k.owned) })
	g.Add("choose", k.follow)
	return g.Run(ctx)
}

// watch keeps s current until ctx ends, and puts a token into each of wake when it
// changes.
func (k *Keeper) watch(ctx context.Context, name string, s *slot, wake ...chan struct{}) error {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			list, err := secrets.List(ctx, o)
			return list, k.explain(err, name, "list")
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			w, err := secrets.Watch(ctx, o)
			return w, k.explain(err, name, "watch")
		},
	}, k.cfg.Client)
	st := &store{name: name, set: func(secret *corev1.Secret) {
		k.mu.Lock()
		*s = slot{true, secret}
		k.mu.Unlock()
		for _, w := range wake {
			select {
			case w <- struct{}{}:
			default:
			}
		}
	}}
	logger := klog.FromContext(ctx)
	cache.NewReflectorWithOptions(lw, &corev1.Secret{}, st, cache.ReflectorOptions{Name: name, TypeDescription: "secret " + name, Logger: &logger}).RunWithContext(ctx)
	return nil
}

// explain adds what to do.
func (k *Keeper) explain(err error, name, verb string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	return fmt.Errorf("%w (the control plane's account needs %s on secret %s in namespace %s)", err, verb, name, k.cfg.Namespace)
}

// follow settles after every change, and again while that fails.
func (k *Keeper) follow(ctx context.Context) error {
	retry := run.NewBackoff(minRetry, maxRetry)
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-again:
		}
		again = nil
		if err := k.settle(ctx); err != nil {
			wait := retry.Next()
			k.cfg.Log.Error("certificate authority", "err", err, "retry", wait)
			again = time.After(wait)
			continue
		}
		retry.Reset()
	}
}

// settle puts in force what the Secrets hold now.
func (k *Keeper) settle(ctx context.Context) error {
	k.mu.Lock()
	plugged, own, used := k.plugged, k.own, k.used
	k.mu.Unlock()
	if !plugged.known || !own.known {
		return nil
	}
	c := choose(plugged.secret, own.secret, used, k.cfg, time.Now())
	k.judge(c)
	switch {
	case c.create:
		return k.create(ctx)
	case c.material != nil:
		k.use(c)
	}
	return nil
}

// judge tells of what was refused, once.
func (k *Keeper) judge(c choice) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.refused == nil {
		k.refused.Set(0)
		if k.told != "" {
			k.cfg.Log.Info("certificate authority accepted again")
		}
		k.told = ""
		return
	}
	k.refused.Set(1)
	if text := c.refused.Error(); text != k.told {
		k.told = text
		if k.used == nowhere {
			k.cfg.Log.Error("certificate authority refused; nothing is signed until it is corrected", "err", c.refused)
		} else {
			k.cfg.Log.Error("certificate authority refused; the last good one signs on", "err", c.refused, "in force", k.cfg.Authority.Material().Name())
		}
	}
}

// use puts an authority in force and tells what that means for the mesh.
func (k *Keeper) use(c choice) {
	k.mu.Lock()
	k.used = c.from
	if c.from == selfMade {
		k.made = c.state
	}
	k.mu.Unlock()
	old := k.cfg.Authority.Material()
	if c.material.Equal(old) {
		return
	}
	root, chain := c.material.Expiry()
	k.cfg.Log.Info("certificate authority in force", "secret", k.secretOf(c.from), "signs", c.material.Name(), "expires", chain, "root expires", root)
	if old != nil && !old.Trusts(c.material) {
		k.cfg.Log.Warn("the new root was not trusted before: what is signed from now on is refused by workloads until their own certificates are renewed; trust a new root for a day before signing under it")
	}
	if old != nil && !c.material.Trusts(old) {
		k.cfg.Log.Warn("the old root is not trusted any more: certificates under it are refused by workloads that renew; keep it among the roots until they have all been renewed")
	}
	if first := min(root.Unix(), chain.Unix()); time.Until(time.Unix(first, 0)) < soon {
		k.cfg.Log.Warn("the certificate authority expires soon", "at", time.Unix(first, 0).UTC())
	}
	k.cfg.Authority.Use(c.material)
}

func (k *Keeper) secretOf(f from) string {
	if f == plugged {
		return k.cfg.Plugged
	}
	return k.cfg.Own
}

// create makes the self-made Secret: with the state that was in force, if it was
// removed, else with a new root. Whose is there first is everybody's.
func (k *Keeper) create(ctx context.Context) error {
	k.mu.Lock()
	state, used := k.made, k.used
	k.mu.Unlock()
	if used != selfMade {
		var err error
		if state, err = selfsigned.NewState(time.Now()); err != nil {
			return err
		}
	}
	s, err := secretOf(state, nil, k.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	_, err = secrets.Create(ctx, s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // its watch tells
	}
	if err != nil {
		return fmt.Errorf("create secret %s: %w", k.cfg.Own, k.explain(err, k.cfg.Own, "create"))
	}
	k.cfg.Log.Info("certificate authority made", "secret", k.cfg.Own)
	return nil
}
