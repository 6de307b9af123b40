package apiserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Annotator writes on pods how they are redirected. Nobody waits for it: a pod may
// start while the API server is away, and is annotated when it is back.
type Annotator struct {
	client rest.Interface
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	pending map[mesh.PodUID]note // the latest of each pod
}

// note is what is to be written on a pod.
type note struct {
	pod         mesh.PodInfo
	redirection string
}

// NewAnnotator returns an annotator that writes nothing before Run.
func NewAnnotator(config *rest.Config, log *slog.Logger) (*Annotator, error) {
	client, err := coreClient(config)
	if err != nil {
		return nil, err
	}
	return &Annotator{client: client, log: log, wake: make(chan struct{}, 1), pending: map[mesh.PodUID]note{}}, nil
}

// Annotate notes how a pod is redirected; "" takes the annotation away. Of several
// notes about a pod only the latest is written.
func (a *Annotator) Annotate(uid mesh.PodUID, p mesh.PodInfo, redirection string) {
	a.mu.Lock()
	a.pending[uid] = note{p, redirection}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// annotateTimeout bounds one request.
const annotateTimeout = 5 * time.Second

// Run writes what is noted until ctx ends. What fails is tried again, with pauses
// that grow.
func (a *Annotator) Run(ctx context.Context) error {
	pause := run.NewBackoff(100*time.Millisecond, 15*time.Second)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
		for {
			failed := a.writeAll(ctx)
			if failed == 0 {
				pause.Reset()
				break
			}
			if run.Sleep(ctx, pause.Next()) != nil {
				return nil
			}
		}
	}
}

// writeAll writes what is pending and returns how much of it failed, which is
// pending again unless there is something newer to write.
func (a *Annotator) writeAll(ctx context.Context) (failed int) {
	a.mu.Lock()
	notes := a.pending
	a.pending = map[mesh.PodUID]note{}
	a.mu.Unlock()
	for uid, n := range notes {
		err := a.write(ctx, uid, n)
		if err == nil {
			continue
		}
		a.log.Warn("pod not annotated, will try again", "pod", n.pod, "uid", uid, "error", err)
		failed++
		a.mu.Lock()
		if _, newer := a.pending[uid]; !newer {
			a.pending[uid] = n
		}
		a.mu.Unlock()
	}
	return failed
}

// write patches the pod's status subresource, which needs fewer rights than the
// pod itself. A pod that is gone, or another one of that name, is left alone.
func (a *Annotator) write(ctx context.Context, uid mesh.PodUID, n note) error {
	patch, err := patchOf(uid, n.redirection)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, annotateTimeout)
	defer cancel()
	err = a.client.Patch(types.MergePatchType).Namespace(n.pod.Namespace).Resource("pods").Name(n.pod.Name).SubResource("status").
		Body(patch).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// patchOf is the merge patch. With the UID in it the server refuses to patch
// another pod.
func patchOf(uid mesh.PodUID, redirection string) ([]byte, error) {
	var value any = redirection
	if redirection == "" {
		value = nil
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         uid,
		"annotations": map[string]any{enroll.AnnotationRedirection: value},
	}})
}
