package lease

import (
	"context"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// released returns true as soon as the Lease is nobody's, and false when ctx ends.
// A version of the Lease that it has told of once it does not tell of again: what
// cannot be taken is not tried again and again. While the Lease cannot be watched
// the election's own retries must do.
func (l *Lease) released(ctx context.Context) bool {
	for ctx.Err() == nil {
		w, err := l.cfg.Leases.Leases(l.cfg.Namespace).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, l.cfg.Name).String()})
		if err == nil && l.hear(ctx, w) {
			return true
		}
		run.Sleep(ctx, RetryPeriod)
	}
	return false
}

// hear reads a watch until it ends, or until the Lease is nobody's.
func (l *Lease) hear(ctx context.Context, w watch.Interface) bool {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case event, ok := <-w.ResultChan():
			if !ok {
				return false
			}
			if o, is := event.Object.(*coordinationv1.Lease); is && l.free(event.Type, o) {
				return true
			}
		}
	}
}

func (l *Lease) free(event watch.EventType, o *coordinationv1.Lease) bool {
	held := event != watch.Deleted && o.Spec.HolderIdentity != nil && *o.Spec.HolderIdentity != ""
	version := string(event) + o.ResourceVersion
	if held || o.Name != l.cfg.Name || version == l.told {
		return false
	}
	l.told = version
	return true
}
