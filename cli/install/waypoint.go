package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// waypointClass is the class of the waypoints that are made here: the one that
// istioctl uses, so that manifests fit either mesh.
const waypointClass = "istio-waypoint"

// IsWaypoint reports whether Gateways of a class are waypoints.
func IsWaypoint(class string) bool { return class == waypointClass || class == "culvert-waypoint" }

// WaypointFor are the kinds of traffic that a waypoint can be for.
var WaypointFor = []string{"service", "workload", "all", "none"}

// Waypoint describes a waypoint to be made.
type Waypoint struct {
	Namespace, Name string
	For             string // one of WaypointFor; empty leaves it to the class: service
	Revision        string // label istio.io/rev; empty for none
}

// Gateway returns the waypoint as an object.
func (w Waypoint) Gateway() (*unstructured.Unstructured, error) {
	if w.For != "" && !slices.Contains(WaypointFor, w.For) {
		return nil, laptop.WithHint(fmt.Errorf("--for %s: there is no such traffic", w.For), "%s", strings.Join(WaypointFor, ", "))
	}
	labels := map[string]any{}
	if w.For != "" {
		labels["istio.io/waypoint-for"] = w.For
	}
	if w.Revision != "" {
		labels["istio.io/rev"] = w.Revision
	}
	meta := map[string]any{"name": w.Name, "namespace": w.Namespace}
	if len(labels) > 0 {
		meta["labels"] = labels
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta,
		"spec": map[string]any{
			"gatewayClassName": waypointClass,
			"listeners":        []any{map[string]any{"name": "mesh", "port": int64(15008), "protocol": "HBONE"}},
		},
	}}, nil
}

// YAML returns the waypoint as a manifest.
func (w Waypoint) YAML() (string, error) {
	g, err := w.Gateway()
	if err != nil {
		return "", err
	}
	text, err := yaml.Marshal(g.Object)
	return string(text), err
}

// ApplyWaypoint makes a waypoint or changes it, and with wait > 0 waits until it serves.
func (c *Cluster) ApplyWaypoint(ctx context.Context, w Waypoint, wait time.Duration, out io.Writer) error {
	g, err := w.Gateway()
	if err != nil {
		return err
	}
	if _, err := c.Client.CoreV1().Namespaces().Get(ctx, w.Namespace, metav1.GetOptions{}); err != nil {
		return explain("waypoint "+w.Name, err)
	}
	_, err = c.Dynamic.Resource(gateways).Namespace(w.Namespace).Apply(ctx, w.Name, g, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if apierrors.IsNotFound(err) {
		return laptop.WithHint(errors.New("waypoint: the API server does not know Gateways"), "culvert install brings Gateway API; culvert check says what is missing")
	}
	if err != nil {
		return explain("waypoint "+w.Namespace+"/"+w.Name, err)
	}
	fmt.Fprintf(out, "waypoint %s/%s applied\n", w.Namespace, w.Name)
	if wait <= 0 {
		return nil
	}
	return c.waitWaypoint(ctx, w, wait, out)
}

func (c *Cluster) waitWaypoint(ctx context.Context, w Waypoint, wait time.Duration, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	var g Gateway
	for {
		u, err := c.Dynamic.Resource(gateways).Namespace(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err == nil {
			if g = gatewayOf(u); g.Programmed {
				fmt.Fprintf(out, "waypoint %s/%s is ready\n", w.Namespace, w.Name)
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return laptop.WithHint(fmt.Errorf("waypoint %s/%s is not ready after %s: %s", w.Namespace, w.Name, wait, c.whyNoWaypoint(w, g)),
				"culvert check; kubectl describe gateway -n %s %s", w.Namespace, w.Name)
		}
	}
}

// whyNoWaypoint is what the Gateway or the pods made of it say.
func (c *Cluster) whyNoWaypoint(w Waypoint, g Gateway) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	o, err := c.observe(ctx, Workload{"Deployment", w.Namespace, w.Name})
	switch {
	case err != nil:
		return err.Error()
	case o.Missing && g.Message != "":
		return g.Message
	case o.Missing:
		return "no Deployment was made for it: does a replica of the control plane lead?"
	}
	return Judge(o).line()
}

// Enroll has a namespace use a waypoint of its own.
func (c *Cluster) Enroll(ctx context.Context, namespace, waypoint string, out io.Writer) error {
	ns, err := c.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return explain("namespace "+namespace, err)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, useWaypoint, waypoint)
	if _, err := c.Client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return explain("namespace "+namespace, err)
	}
	fmt.Fprintf(out, "namespace %s uses waypoint %s\n", namespace, waypoint)
	if ns.Labels["istio.io/dataplane-mode"] != "ambient" {
		fmt.Fprintf(out, "! namespace %s is not in the mesh: kubectl label namespace %s istio.io/dataplane-mode=ambient\n", namespace, namespace)
	}
	return nil
}

// Waypoints lists the waypoints of a namespace, or of all when it is empty.
func (c *Cluster) Waypoints(ctx context.Context, namespace string) (found []Gateway, err error) {
	all, err := c.gateways(ctx)
	if err != nil {
		return nil, explain("list Gateways", err)
	}
	for _, g := range all {
		if IsWaypoint(g.Class) && (namespace == "" || g.Namespace == namespace) {
			found = append(found, g)
		}
	}
	return found, nil
}

// DeleteWaypoints deletes waypoints by name, or all of a namespace when no name is
// given. A name that does not exist is an error after the others are gone.
func (c *Cluster) DeleteWaypoints(ctx context.Context, namespace string, names []string, all bool, out io.Writer) error {
	there, err := c.Waypoints(ctx, namespace)
	if err != nil {
		return err
	}
	if all {
		for _, g := range there {
			names = append(names, g.Name)
		}
	}
	var errs []error
	for _, name := range names {
		if !slices.ContainsFunc(there, func(g Gateway) bool { return g.Name == name }) {
			errs = append(errs, laptop.WithHint(fmt.Errorf("there is no waypoint %s/%s", namespace, name), "culvert waypoint list -A"))
			continue
		}
		if err := c.Dynamic.Resource(gateways).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			errs = append(errs, explain("waypoint "+namespace+"/"+name, err))
			continue
		}
		fmt.Fprintf(out, "waypoint %s/%s deleted\n", namespace, name)
	}
	return errors.Join(errs...)
}
