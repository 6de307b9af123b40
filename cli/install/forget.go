package install

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/status"
)

// forgetStatus takes what the control plane said about the users' objects out of
// their status. Nobody keeps it true any more. What others said stays.
func (i *Installer) forgetStatus(ctx context.Context) error {
	n := 0
	for _, kind := range status.Kinds() {
		resource := status.Resource(kind)
		objects, err := i.Cluster.list(ctx, resource)
		if err != nil {
			return explain("list "+resource.Resource, err)
		}
		for _, o := range objects {
			did, err := i.forgetObject(ctx, kind, resource, &o)
			if err != nil {
				return explain(string(kind)+" "+o.GetNamespace()+"/"+o.GetName(), err)
			}
			n += did
		}
	}
	did, err := i.forgetWaypoints(ctx)
	if err != nil {
		return err
	}
	i.removed(n+did, "object's conditions", "objects' conditions")
	return nil
}

// attempts is how often an object is read again that somebody else is writing.
const attempts = 5

// forgetObject returns how many objects it has changed: one or none.
func (i *Installer) forgetObject(ctx context.Context, kind source.Kind, resource schema.GroupVersionResource, o *unstructured.Unstructured) (int, error) {
	api := i.Cluster.Dynamic.Resource(resource).Namespace(o.GetNamespace())
	for attempt := 1; ; attempt++ {
		raw, err := json.Marshal(o.Object)
		if err != nil {
			return 0, fmt.Errorf("write as JSON: %w", err)
		}
		patch, err := status.Forget(kind, raw)
		if err != nil || patch == nil {
			return 0, err
		}
		_, err = api.Patch(ctx, o.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
		switch {
		case err == nil:
			return 1, nil
		case apierrors.IsNotFound(err):
			return 0, nil
		case !apierrors.IsConflict(err) || attempt == attempts:
			return 0, err
		}
		if o, err = api.Get(ctx, o.GetName(), metav1.GetOptions{}); err != nil {
			if apierrors.IsNotFound(err) {
				return 0, nil
			}
			return 0, err
		}
	}
}

// forgetWaypoints gives up what the control plane applied to the status of Gateways.
func (i *Installer) forgetWaypoints(ctx context.Context) (n int, err error) {
	list, err := i.Cluster.list(ctx, gateways)
	if err != nil {
		return 0, explain("list Gateways", err)
	}
	for _, g := range list {
		manager, ok := saidBy(&g)
		if !ok {
			continue
		}
		nothing := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": gateways.GroupVersion().String(), "kind": "Gateway",
			"metadata": map[string]any{"namespace": g.GetNamespace(), "name": g.GetName(), "uid": string(g.GetUID())}}}
		_, err := i.Cluster.Dynamic.Resource(gateways).Namespace(g.GetNamespace()).ApplyStatus(ctx, g.GetName(), nothing, metav1.ApplyOptions{FieldManager: manager, Force: true})
		if err != nil && !apierrors.IsNotFound(err) {
			return n, explain("Gateway "+g.GetNamespace()+"/"+g.GetName(), err)
		}
		n++
	}
	return n, nil
}

// saidBy returns under which of the control plane's names a Gateway's status was
// applied, if it was.
func saidBy(g *unstructured.Unstructured) (manager string, ok bool) {
	for _, m := range g.GetManagedFields() {
		if m.Subresource == "status" && m.Operation == metav1.ManagedFieldsOperationApply && slices.Contains(controllers, m.Manager) {
			return m.Manager, true
		}
	}
	return "", false
}
