package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
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
	watchDelay    = 5 * time.Second  // after which something that was made and is not seen is not there
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
	notes   map[string]*notes            // of Gateways, by namespace and name
	configs map[string]*corev1.ConfigMap // parameters, by namespace and name, as they were last read
}

// applied is how an object was when it was last applied. What is watched comes a
// little later than what was answered, and must not be taken for somebody's change.
type applied struct {
	desired, print uint64
	version        string
	at             time.Time
}

// notes are what was done for a Gateway. They belong to whoever works on it: the
// queue gives it to one at a time.
type notes struct {
	applied map[string]applied // by kind and name
	gone    sync.Map           // versions of objects when they were deleted, by kind and name; the one note of the watch's
	status  gatewayv1.GatewayStatus
	version string // that the Gateway had with that status; "" when none was written
}

// of returns the notes of a Gateway.
func (t *term) of(key string) *notes {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.notes[key] == nil {
		t.notes[key] = &notes{applied: map[string]applied{}}
	}
	return t.notes[key]
}

// deleted notes that an object is gone.
func (t *term) deleted(l *Live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.notes[l.Namespace+"/"+l.Labels[LabelGatewayName]]; n != nil {
		n.gone.Store(l.Kind+" "+l.Name, l.ResourceVersion)
	}
}

// forget drops the notes of a Gateway that is gone.
func (t *term) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.notes, key)
}

// older reports whether version a of an object is from before b.
func older(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order < 0
}

// Run works until ctx ends. It may be called again after it returned.
func (c *Controller) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(c.cfg.Log.Handler()))
	t := &term{
		Controller: c,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[item](firstRetry, lastRetry)),
		notes: map[string]*notes{}, configs: map[string]*corev1.ConfigMap{},
	}
	defer t.queue.ShutDown()
	t.watch = newWatches(c.cfg, t.queue, t.deleted)
	stop, err := t.watch.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if !t.watch.synced(ctx) {
		return nil
	}
	c.cfg.Log.Info("gateway controller works", "gateways", len(t.watch.gateways.GetStore().ListKeys()))
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

// reconcile works on an item. A panic is an error of that item: no object that
// somebody writes ends the control plane, and with it that of the next leader.
func (t *term) reconcile(ctx context.Context, i item) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if i.class {
		return t.class(ctx, i.name)
	}
	return t.gateway(ctx, i.namespace, i.name)
}
