//go:build kube

package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	upstream "sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/consts"
	"sigs.k8s.io/gateway-api/pkg/features"
)

var (
	class   = flag.String("waypoint-class", "culvert-waypoint", `GatewayClass of the waypoints; "" to test without any`)
	idle    = flag.String("idle-image", "culvert.test/pause:v1", "image of a pod that does nothing")
	reports = flag.String("reports", "", "folder to write the report into")
)

// waypoint is the name of the waypoint in each of the suite's namespaces.
const waypoint = "waypoint"

// limit is how long a waypoint may take to serve.
const limit = 2 * time.Minute

// TestConformance runs every test of the suite that is about meshes, those
// that belong to no profile too, and writes the report.
func TestConformance(t *testing.T) {
	options := upstream.DefaultOptions(t)
	options.NamespaceLabels = map[string]string{"istio.io/dataplane-mode": "ambient"}
	if *class != "" {
		options.NamespaceLabels["istio.io/use-waypoint"] = waypoint
		for _, namespace := range []string{suite.MeshNamespace, suite.MeshConsumerNamespace} {
			if err := startWaypoint(t.Context(), options.Client, namespace, options.NamespaceLabels); err != nil {
				t.Fatalf("waypoint of %s: %v", namespace, err)
			}
		}
	}
	for _, namespace := range []string{suite.AppBackendNamespace, suite.WebBackendNamespace} {
		if err := fill(t.Context(), options.Client, namespace); err != nil {
			t.Fatalf("namespace %s: %v", namespace, err)
		}
		t.Cleanup(func() {
			if err := options.Client.Delete(context.Background(), namespaceOf(namespace)); err != nil {
				t.Error(err)
			}
		})
	}
	options.GatewayClassName = "" // no gateway is tested
	options.SupportedFeatures = claimed().UnsortedList()
	options.ConformanceProfiles = []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	options.Implementation = confv1.Implementation{
		Organization: "culvert-mesh", Project: "culvert", URL: "https://github.com/culvert-mesh/culvert",
		Version: os.Getenv("VERSION"), Contact: []string{"https://github.com/culvert-mesh/culvert/issues"},
	}
	if *reports != "" {
		options.ReportOutputPath = filepath.Join(*reports, "gateway-api-"+consts.BundleVersion+".yaml")
	}
	upstream.RunConformanceWithOptions(t, options)
}

// claimed are all features that any test of a mesh asks for.
func claimed() sets.Set[features.FeatureName] {
	found := sets.New[features.FeatureName]()
	for _, test := range tests.ConformanceTests {
		if of := sets.New(test.Features...); of.Has(features.SupportMesh) {
			found = found.Union(of)
		}
	}
	return found
}

// fill makes a namespace with a pod that does nothing, outside of the mesh. The suite
// waits for pods in those of its tests of gateways even when only a mesh is tested.
func fill(ctx context.Context, c client.Client, namespace string) error {
	return apply(ctx, c,
		namespaceOf(namespace),
		&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: metav1.ObjectMeta{Name: "idle", Namespace: namespace}},
		&corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "idle", Namespace: namespace},
			Spec: corev1.PodSpec{ServiceAccountName: "idle", Containers: []corev1.Container{{Name: "idle", Image: *idle, ImagePullPolicy: corev1.PullIfNotPresent}}},
		})
}

func namespaceOf(name string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// apply makes objects what they are here.
func apply(ctx context.Context, c client.Client, objects ...client.Object) error {
	for _, object := range objects {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return err
		}
		delete(content, "status")
		configuration := client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content})
		if err := c.Apply(ctx, configuration, client.FieldOwner("conformance"), client.ForceOwnership); err != nil {
			return err
		}
	}
	return nil
}

// startWaypoint makes a namespace, which the suite will add to, and a waypoint in
// it, and waits until that serves.
func startWaypoint(ctx context.Context, c client.Client, namespace string, labels map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	all := gatewayv1.NamespacesFromAll
	gateway := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: waypoint, Labels: map[string]string{"istio.io/waypoint-for": "service"}},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(*class), Listeners: []gatewayv1.Listener{{
			Name: "mesh", Port: 15008, Protocol: "HBONE", AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}},
		}}},
	}
	inMesh := namespaceOf(namespace)
	inMesh.Labels = labels
	if err := apply(ctx, c, inMesh, gateway); err != nil {
		return err
	}
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(gateway), gateway); err != nil {
			return err
		}
		if meta.IsStatusConditionTrue(gateway.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not programmed: %+v", gateway.Status.Conditions)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
