package apiserver

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Component is the source that events of the node agent name.
const Component = "culvert-cni"

// Events writes Kubernetes Events about the node and its pods. Equal ones become
// one that is counted, ten alike within ten minutes become one that says so, and
// of an object no more than 25 at once and then one in five minutes are written.
// Nobody waits for it; what the API server does not take is tried a few times and
// then dropped.
type Events struct {
	node        string
	client      typedcorev1.EventsGetter
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewEvents returns a recorder of events of node. It writes nothing before Run.
func NewEvents(config *rest.Config, node string, log *slog.Logger) (*Events, error) {
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	e := &Events{node: node, client: client}
	e.broadcaster = record.NewBroadcaster(record.WithContext(klog.NewContext(context.Background(), logr.FromSlogHandler(log.Handler()))))
	e.recorder = e.broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Component, Host: node})
	return e, nil
}

// Run writes events until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	w := e.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: e.client.Events("")})
	<-ctx.Done()
	w.Stop()
	e.broadcaster.Shutdown()
	return nil
}

// PodEvent says something about a pod.
func (e *Events) PodEvent(uid mesh.PodUID, p mesh.PodInfo, warning bool, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: types.UID(uid)},
		severity(warning), reason, message)
}

// NodeEvent says something about the node. As the kubelet does it, its name stands
// for its UID, so that `kubectl describe node` shows it.
func (e *Events) NodeEvent(warning bool, reason, message string) {
	e.recorder.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: e.node, UID: types.UID(e.node)},
		severity(warning), reason, message)
}

func severity(warning bool) string {
	if warning {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}
