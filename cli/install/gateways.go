package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	gateways       = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	gatewayClasses = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
)

// controllers are the names under which the mesh claims GatewayClasses.
var controllers = []string{"istio.io/mesh-controller", "culvert-mesh.github.io/mesh-controller"}

// made are the kinds that a Gateway becomes.
var made = []schema.GroupVersionResource{
	{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"},
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "serviceaccounts"},
}

// removeGateways deletes what the control plane made of Gateways, and its classes.
// The Gateways are the users' own.
func (i *Installer) removeGateways(ctx context.Context) error {
	var values []string
	for _, c := range controllers {
		values = append(values, strings.ReplaceAll(c, "/", "-"))
	}
	selector := fmt.Sprintf("%s in (%s)", managedLabel, strings.Join(values, ","))
	n := 0
	for _, kind := range made {
		list, err := i.Cluster.Dynamic.Resource(kind).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return explain("list "+kind.Resource, err)
		}
		background := metav1.DeletePropagationBackground
		for _, o := range list.Items {
			if !ofGateway(&o) {
				continue
			}
			err := i.Cluster.Dynamic.Resource(kind).Namespace(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
			if err != nil && !apierrors.IsNotFound(err) {
				return explain(kind.Resource+" "+o.GetNamespace()+"/"+o.GetName(), err)
			}
			n++
		}
	}
	i.removed(n, "object of a waypoint", "objects of waypoints (Deployments, Services, ServiceAccounts)")
	classes, err := i.Cluster.list(ctx, gatewayClasses)
	if err != nil {
		return explain("list GatewayClasses", err)
	}
	for _, c := range classes {
		controller, _, _ := unstructured.NestedString(c.Object, "spec", "controllerName")
		if !slices.Contains(controllers, controller) {
			continue
		}
		if c.GetLabels()[partOf] != "culvert" {
			i.say("GatewayClass %s is kept: somebody else made it", c.GetName())
			continue
		}
		if err := i.remove("GatewayClass "+c.GetName(), i.Cluster.Dynamic.Resource(gatewayClasses).Delete(ctx, c.GetName(), metav1.DeleteOptions{})); err != nil {
			return err
		}
	}
	return nil
}

// ofGateway reports whether an object was made of a Gateway, which owns it then. The
// label alone anybody may have copied.
func ofGateway(u *unstructured.Unstructured) bool {
	return slices.ContainsFunc(u.GetOwnerReferences(), func(o metav1.OwnerReference) bool {
		return o.Kind == "Gateway" && strings.HasPrefix(o.APIVersion, gateways.Group+"/")
	})
}

// list returns all objects of a kind, in all namespaces: none when there is no such kind.
func (c *Cluster) list(ctx context.Context, kind schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	list, err := c.Dynamic.Resource(kind).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// hasCondition reports whether a condition of an object is True.
func hasCondition(u *unstructured.Unstructured, name string) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, ok := c.(map[string]any)
		return ok && m["type"] == name && m["status"] == "True"
	})
}
