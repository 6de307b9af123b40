package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// DaemonSet follows the DaemonSet that an agent's pod belongs to, to know at the
// agent's end whether a successor comes (an upgrade) or none (the mesh goes).
//
// It watches, because whoever uninstalls the mesh takes the agent's rights away in
// the same breath: when the agent is told to end, asking may be too late, and what
// was seen before counts.
type DaemonSet struct {
	namespace, name, node string
	sets                  typedappsv1.DaemonSetInterface
	core                  typedcorev1.CoreV1Interface
	log                   *slog.Logger

	mu   sync.Mutex
	last *appsv1.DaemonSet // as it was last seen
	gone bool              // it was there, and is not any more
}

// NewDaemonSet returns a follower that asks nothing before Run.
func NewDaemonSet(config *rest.Config, namespace, name, node string, log *slog.Logger) (*DaemonSet, error) {
	sets, err := typedappsv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &DaemonSet{namespace: namespace, name: name, node: node, sets: sets.DaemonSets(namespace), core: core, log: log}, nil
}

// Run follows the DaemonSet until ctx ends.
func (d *DaemonSet) Run(ctx context.Context) error {
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, d.name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return d.sets.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return d.sets.Watch(ctx, o)
		},
	}
	logger := logr.FromSlogHandler(d.log.Handler())
	o := cache.ReflectorOptions{Name: "daemonset", TypeDescription: "daemonset", Logger: &logger}
	cache.NewReflectorWithOptions(lw, &appsv1.DaemonSet{}, d, o).RunWithContext(klog.NewContext(ctx, logger))
	return nil
}

// lastQuestion bounds what is asked of the API server at the end.
const lastQuestion = 3 * time.Second

// Succeeded reports whether the agent of this node will have a successor, and why or
// why not. What cannot be known counts as yes: an agent that comes back finds
// everything as it was, and a node from which the plugin went by mistake starts
// pods outside the mesh.
func (d *DaemonSet) Succeeded(ctx context.Context) (bool, string) {
	ctx, cancel := context.WithTimeout(ctx, lastQuestion)
	defer cancel()
	ds, err := d.sets.Get(ctx, d.name, metav1.GetOptions{})
	d.mu.Lock()
	last, gone := d.last, d.gone
	d.mu.Unlock()
	switch {
	case gone || apierrors.IsNotFound(err) && last != nil:
		return false, "the DaemonSet is deleted"
	case err != nil && last == nil:
		return true, "the DaemonSet is not known: " + err.Error()
	case err != nil:
		ds = last // the rights may be gone already
	}
	ns, err := d.core.Namespaces().Get(ctx, d.namespace, metav1.GetOptions{})
	if err == nil && ns.DeletionTimestamp != nil {
		return false, "the namespace is being deleted"
	}
	node, err := d.core.Nodes().Get(ctx, d.node, metav1.GetOptions{})
	if err != nil {
		node = nil
	}
	return Stays(ds, node)
}

// Stays reports whether a DaemonSet still wants a pod on a node, and why or why
// not. A nil node is one of which nothing is known.
func Stays(ds *appsv1.DaemonSet, node *corev1.Node) (bool, string) {
	if ds.DeletionTimestamp != nil {
		return false, "the DaemonSet is being deleted"
	}
	if node == nil {
		return true, "the DaemonSet is there"
	}
	spec := ds.Spec.Template.Spec
	for key, want := range spec.NodeSelector {
		if got, ok := node.Labels[key]; !ok || got != want {
			return false, fmt.Sprintf("the DaemonSet's node selector %s=%s does not match this node any more", key, want)
		}
	}
	if a := spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		if !matches(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution, node) {
			return false, "the DaemonSet's node affinity does not match this node any more"
		}
	}
	return true, "the DaemonSet is there, and wants a pod on this node"
}

func (d *DaemonSet) set(ds *appsv1.DaemonSet, gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = gone
	if ds != nil {
		d.last = ds
	}
}

// Add implements cache.ReflectorStore.
func (d *DaemonSet) Add(obj any) error {
	ds, ok := obj.(*appsv1.DaemonSet)
	if !ok {
		return fmt.Errorf("want a DaemonSet, got %T", obj)
	}
	d.set(ds, false)
	return nil
}

// Update implements cache.ReflectorStore.
func (d *DaemonSet) Update(obj any) error { return d.Add(obj) }

// Delete implements cache.ReflectorStore.
func (d *DaemonSet) Delete(any) error {
	d.set(nil, true)
	return nil
}

// Replace implements cache.ReflectorStore.
func (d *DaemonSet) Replace(list []any, _ string) error {
	for _, obj := range list {
		return d.Add(obj)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = d.last != nil // one that was never seen was never there: the agent runs by itself
	return nil
}

// Resync implements cache.ReflectorStore.
func (d *DaemonSet) Resync() error { return nil }
