package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// echo hears from the API server of the objects that are changed, as the control
// plane does: when it hears is what the API server alone takes.
type echo struct {
	mu    sync.Mutex
	heard map[string]time.Time // by version of the object
	wake  chan struct{}
}

// listen hears of the first of the namespaces until ctx ends.
func (c *cluster) listen(ctx context.Context) (*echo, error) {
	e := &echo{heard: map[string]time.Time{}, wake: make(chan struct{}, 1)}
	for _, gvr := range []schema.GroupVersionResource{{Version: "v1", Resource: "pods"}, policies} {
		if err := e.watch(ctx, c.bare.Resource(gvr)); err != nil {
			return nil, fmt.Errorf("watch %s: %w", gvr.Resource, err)
		}
	}
	return e, nil
}

func (e *echo) watch(ctx context.Context, of metadata.ResourceInterface) error {
	list, err := of.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return of.Watch(ctx, o) },
	})
	if err != nil {
		return err
	}
	go func() {
		defer w.Stop()
		for event := range w.ResultChan() {
			if m, err := meta.Accessor(event.Object); err == nil {
				e.hear(m.GetResourceVersion(), time.Now())
			}
		}
	}()
	return nil
}

func (e *echo) hear(version string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard[version] = now
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// after returns how long after then an object's version was heard of, and forgets
// the others.
func (e *echo) after(ctx context.Context, version string, then time.Time) (time.Duration, error) {
	for {
		e.mu.Lock()
		at, ok := e.heard[version]
		if ok {
			clear(e.heard)
		}
		e.mu.Unlock()
		if ok {
			return max(0, at.Sub(then)), nil
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(30 * time.Second):
			return 0, fmt.Errorf("the API server has not told of version %s within 30 s", version)
		}
	}
}
