package gateway

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// trimGateway makes a Gateway of what was sent; of one that does not read like one
// its metadata remains, which nobody looks at.
func (w *watches) trimGateway(obj any) any { return convert(w.cfg, obj, &gatewayv1.Gateway{}) }

func (w *watches) trimClass(obj any) any { return convert(w.cfg, obj, &gatewayv1.GatewayClass{}) }

func convert(cfg Config, obj any, into metav1.Object) any {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj
	}
	u.SetManagedFields(nil)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, into); err != nil {
		cfg.Log.Error("object is ignored: it cannot be read", "kind", u.GetKind(), "namespace", u.GetNamespace(), "name", u.GetName(), "error", err)
		return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: u.GetKind(), APIVersion: u.GetAPIVersion()},
			ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion()}}
	}
	return into
}

func trimLive(obj any) any {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return Trim(u, Controllers()...)
	}
	return obj
}

// trimMeta keeps of metadata a name, a version and labels: only those named, or
// all if none is.
func trimMeta(labels ...string) func(any) any {
	return func(obj any) any {
		m, ok := obj.(*metav1.PartialObjectMetadata)
		if !ok {
			return obj
		}
		kept := m.Labels
		if len(labels) > 0 {
			kept = maps.Clone(m.Labels)
			maps.DeleteFunc(kept, func(k, _ string) bool { return !slices.Contains(labels, k) })
		}
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID,
			ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp, Labels: kept}}
	}
}

// trimRoute keeps of a route which Gateways it names.
func trimRoute(obj any) any {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj
	}
	r := &Route{Kind: u.GetKind(), ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion()}}
	refs, _, _ := unstructured.NestedSlice(u.Object, "spec", "parentRefs")
	for _, raw := range refs {
		var ref gatewayv1.ParentReference
		m, ok := raw.(map[string]any)
		if !ok || runtime.DefaultUnstructuredConverter.FromUnstructured(m, &ref) != nil {
			continue
		}
		if _, _, ok := parentGateway(r.Namespace, ref); ok {
			r.Parents = append(r.Parents, ref)
		}
	}
	return r
}

func indexClass(obj any) ([]string, error) {
	if g, ok := obj.(*gatewayv1.Gateway); ok {
		return []string{string(g.Spec.GatewayClassName)}, nil
	}
	return nil, nil
}

func indexParameters(obj any) ([]string, error) {
	if g, ok := obj.(*gatewayv1.Gateway); ok {
		if name, named, err := ParametersOf(g); named && err == nil {
			return []string{g.Namespace + "/" + name}, nil
		}
	}
	return nil, nil
}

func indexDefaults(obj any) ([]string, error) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok && m.Labels[LabelDefaultsForClass] != "" {
		return []string{m.Labels[LabelDefaultsForClass]}, nil
	}
	return nil, nil
}

func indexLabel(obj any) ([]string, error) {
	if l, ok := obj.(*Live); ok {
		return []string{l.Namespace + "/" + l.Labels[LabelGatewayName]}, nil
	}
	return nil, nil
}

func indexParents(obj any) (keys []string, _ error) {
	if r, ok := obj.(*Route); ok {
		for _, ref := range r.Parents {
			ns, name, _ := parentGateway(r.Namespace, ref)
			if key := ns + "/" + name; !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys, nil
}
