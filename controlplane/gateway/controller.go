package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	corev1 "k8s.io/api/core/v1"
)

// Config is what a Controller works with.
type Config struct {
	Client   dynamic.Interface
	Metadata metadata.Interface
	Options  Options
	Log      *slog.Logger          // nil = none
	Metrics  prometheus.Registerer // nil = none
}

// Controller carries out the plans of all Gateways of waypoint classes of an API
// server. Each Gateway is worked on by itself: what goes wrong with one is tried
// again, ever more seldom, and holds up no other.
type Controller struct {
	cfg   Config
	done  *prometheus.CounterVec
	wrote *prometheus.CounterVec
}

// New returns a Controller that asks nothing before Run.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{
		cfg: cfg,
		done: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_gateway_plans",
			Help: "Plans of Gateways that were carried out, by result: ok or error."}, []string{"result"}),
		wrote: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_gateway_writes",
			Help: "Writes of the gateway controller, by kind and by action: apply, delete or status."}, []string{"kind", "action"}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(c.done, c.wrote)
	}
	return c
}

// Times of trying again.
const (
	firstRetry    = 100 * time.Millisecond
	lastRetry     = 2 * time.Minute
	hostnameCheck = 30 * time.Second // that an unmanaged Gateway's Service is there now
	workers       = 4
)

// item is something to be worked on.
type item struct {
	class           bool // a GatewayClass, else a Gateway
	namespace, name string
}

// term is one time of being the one that runs.
type term struct {
	*Controller
	queue workqueue.TypedRateLimitingInterface[item]
	watch *watches

	mu      sync.Mutex
	applied map[string]applied           // by kind, namespace and name
	configs map[string]*corev1.ConfigMap // parameters, by namespace and name, as they were last read
}

// applied is how an object was when it was last applied.
type applied struct{ desired, print uint64 }

// Run works until ctx ends. It may be called again after it returned.
func (c *Controller) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(c.cfg.Log.Handler()))
	t := &term{
		Controller: c,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[item](firstRetry, lastRetry)),
		applied: map[string]applied{}, configs: map[string]*corev1.ConfigMap{},
	}
	defer t.queue.ShutDown()
	t.watch = newWatches(c.cfg, t.queue)
	stop, err := t.watch.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if !t.watch.synced(ctx) {
		return nil
	}
	c.cfg.Log.Info("gateway controller works", "gateways", len(t.watch.gateways.GetStore().ListKeys()))
	for class := range classes() {
		t.queue.Add(item{class: true, name: class})
	}
	var working sync.WaitGroup
	for range workers {
		working.Go(func() { t.work(ctx) })
	}
	<-ctx.Done()
	t.queue.ShutDown()
	working.Wait()
	return nil
}

func (t *term) work(ctx context.Context) {
	for {
		i, quit := t.queue.Get()
		if quit {
			return
		}
		t.one(ctx, i)
		t.queue.Done(i)
	}
}

// one works on an item, and sees to it that it is tried again after an error.
func (t *term) one(ctx context.Context, i item) {
	err := t.reconcile(ctx, i)
	switch {
	case err == nil:
		t.done.WithLabelValues("ok").Inc()
		t.queue.Forget(i)
		return
	case ctx.Err() != nil:
		return
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		t.queue.Forget(i) // and with the namespace goes the Gateway
		return
	}
	t.done.WithLabelValues("error").Inc()
	t.cfg.Log.Warn("gateway is tried again", "namespace", i.namespace, "name", i.name, "tries", t.queue.NumRequeues(i)+1, "error", err)
	t.queue.AddRateLimited(i)
}

func (t *term) reconcile(ctx context.Context, i item) error {
	if i.class {
		return t.class(ctx, i.name)
	}
	return t.gateway(ctx, i.namespace, i.name)
}
