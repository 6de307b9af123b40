package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

// server is an API server of which only what the controller needs is there: the
// clients' fakes, with an apply that merges and makes what is missing.
type server struct {
	t       *testing.T
	client  *dynamicfake.FakeDynamicClient
	bare    *metadatafake.FakeMetadataClient
	version int

	mu      sync.Mutex
	writes  []string          // "apply Deployment shop/waypoint", in order
	refuse  map[string]error  // by write
	managed map[string]string // field managers, by write
}

func newServer(t *testing.T) *server {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{gateways: "GatewayList", gatewayClass: "GatewayClassList", configMaps: "ConfigMapList"}
	for _, k := range made() {
		lists[k.Resource] = k.Kind + "List"
	}
	for kind, resource := range routeResources() {
		lists[gatewayGV.WithResource(resource)] = kind + "List"
	}
	bare := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(bare); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, refuse: map[string]error{}, managed: map[string]string{},
		client: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists),
		bare:   metadatafake.NewSimpleMetadataClient(bare)}
	s.client.PrependReactor("patch", "*", s.apply)
	s.client.PrependReactor("delete", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return false, nil, s.note("delete", a.GetResource(), a.GetNamespace(), a.(clienttesting.DeleteAction).GetName(), "")
	})
	s.client.PrependReactor("create", "gatewayclasses", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
		u.SetUID("class")
		return false, nil, s.note("create", a.GetResource(), "", u.GetName(), "")
	})
	return s
}

func (s *server) note(verb string, r schema.GroupVersionResource, namespace, name, manager string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	write := strings.TrimSpace(verb + " " + r.Resource + " " + strings.TrimPrefix(namespace+"/"+name, "/"))
	s.managed[write] = manager
	if err := s.refuse[write]; err != nil {
		s.writes = append(s.writes, "refused "+write)
		return err
	}
	s.writes = append(s.writes, write)
	return nil
}

// apply is a server-side apply. Whatever is there has fields of somebody else.
func (s *server) apply(a clienttesting.Action) (bool, runtime.Object, error) {
	p := a.(clienttesting.PatchActionImpl)
	verb := strings.TrimSpace("apply " + p.GetSubresource())
	forced := p.PatchOptions.Force != nil && *p.PatchOptions.Force
	if p.GetPatchType() != types.ApplyPatchType {
		s.t.Errorf("%s of %s is no apply", p.GetPatchType(), p.GetName())
	}
	if err := s.note(verb, p.GetResource(), p.GetNamespace(), p.GetName(), p.PatchOptions.FieldManager); err != nil {
		return true, nil, err
	}
	var body map[string]any
	if err := json.Unmarshal(p.GetPatch(), &body); err != nil {
		return true, nil, err
	}
	u, err := s.client.Tracker().Get(p.GetResource(), p.GetNamespace(), p.GetName())
	if apierrors.IsNotFound(err) {
		made := &unstructured.Unstructured{Object: body}
		made.SetUID(types.UID(p.GetResource().Resource + "-" + p.GetName()))
		s.stamp(made)
		return true, made, s.client.Tracker().Create(p.GetResource(), made, p.GetNamespace())
	}
	if err != nil {
		return true, nil, err
	}
	if !forced {
		return true, nil, apierrors.NewConflict(p.GetResource().GroupResource(), p.GetName(), errors.New("fields of another manager"))
	}
	is := u.(*unstructured.Unstructured).DeepCopy()
	before := is.DeepCopy()
	if p.GetSubresource() == "status" {
		is.Object["status"] = body["status"]
	} else {
		merge(is.Object, body)
	}
	if fmt.Sprint(before.Object) == fmt.Sprint(is.Object) {
		return true, is, nil
	}
	s.stamp(is)
	return true, is, s.client.Tracker().Update(p.GetResource(), is, p.GetNamespace())
}

func merge(into, from map[string]any) {
	for k, v := range from {
		below, ok := into[k].(map[string]any)
		if m, is := v.(map[string]any); ok && is {
			merge(below, m)
		} else {
			into[k] = v
		}
	}
}

func (s *server) stamp(u *unstructured.Unstructured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	u.SetResourceVersion(fmt.Sprint(s.version))
}

// put makes an object, or changes it.
func (s *server) put(r schema.GroupVersionResource, text string) {
	s.t.Helper()
	var body map[string]any
	if err := yaml.Unmarshal([]byte(text), &body); err != nil {
		s.t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: body}
	s.stamp(u)
	err := s.client.Tracker().Create(r, u, u.GetNamespace())
	if apierrors.IsAlreadyExists(err) {
		err = s.client.Tracker().Update(r, u, u.GetNamespace())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if r == configMaps {
		s.meta(r, u.GetNamespace(), u.GetName(), u.GetLabels(), u.GetResourceVersion())
	}
}

// meta makes the metadata of an object, or changes it.
func (s *server) meta(r schema.GroupVersionResource, namespace, name string, labels map[string]string, version string) {
	s.t.Helper()
	kind := map[string]string{"configmaps": "ConfigMap", "namespaces": "Namespace", "customresourcedefinitions": "CustomResourceDefinition"}[r.Resource]
	m := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: r.GroupVersion().String(), Kind: kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, ResourceVersion: version}}
	err := s.bare.Tracker().Create(r, m, namespace)
	if apierrors.IsAlreadyExists(err) {
		err = s.bare.Tracker().Update(r, m, namespace)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// define makes the definitions of Gateway API.
func (s *server) define() {
	for _, name := range []string{"gateways", "gatewayclasses", "httproutes"} {
		s.meta(definitions, "", name+"."+group, nil, "1")
	}
}

// take returns what was written since, and forgets it. What is seen late may be
// written twice in a row.
func (s *server) take() string { return strings.Join(slices.Compact(s.all()), "\n") }

func (s *server) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.writes
	s.writes = nil
	return out
}

func (s *server) setRefusals(r map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = maps.Clone(r)
}

// condition returns a condition of a Gateway, as "True Programmed".
func (s *server) condition(name, kind string) string {
	s.t.Helper()
	obj, err := s.client.Tracker().Get(gateways, "shop", name)
	if err != nil {
		s.t.Fatal(err)
	}
	list, _, _ := unstructured.NestedSlice(obj.(*unstructured.Unstructured).Object, "status", "conditions")
	for _, c := range list {
		if c := c.(map[string]any); c["type"] == kind {
			return fmt.Sprint(c["status"], " ", c["reason"])
		}
	}
	return ""
}

const text = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, namespace: shop, uid: uid-NAME, generation: 1}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: INFRASTRUCTURE
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`

func gatewayText(name, infrastructure string) string {
	if infrastructure == "" {
		infrastructure = "{}"
	}
	return strings.NewReplacer("NAME", name, "INFRASTRUCTURE", infrastructure).Replace(text)
}

const withParameters = `{parametersRef: {group: "", kind: ConfigMap, name: parameters}}`

func parametersText(data string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: parameters, namespace: shop}\ndata: " + data
}

// run runs a controller on the server in a bubble of simulated time.
func run(t *testing.T, test func(t *testing.T, s *server)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		c := New(Config{Client: s.client, Metadata: s.bare, Options: Options{RootNamespace: "culvert-system"}})
		go func() { ended <- c.Run(ctx) }()
		synctest.Wait()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		test(t, s)
	})
}

// settled waits until nothing more happens.
func settled() {
	synctest.Wait()
	time.Sleep(time.Second)
	synctest.Wait()
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

const allApplied = "apply serviceaccounts shop/waypoint\napply services shop/waypoint\napply deployments shop/waypoint\napply status gateways shop/waypoint"

// TestController follows a Gateway from before its kind is defined to its end.
func TestController(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		settled()
		equal(t, "without definitions", s.take(), "")
		s.define()
		settled()
		if got := s.take(); !strings.Contains(got, "create gatewayclasses istio-waypoint") || !strings.Contains(got, "apply status gatewayclasses culvert-waypoint") {
			t.Errorf("classes: %s", got)
		}

		s.put(gateways, gatewayText("waypoint", ""))
		settled()
		equal(t, "made", s.take(), allApplied)
		equal(t, "manager", s.managed["apply deployments shop/waypoint"], ControllerIstio)
		equal(t, "condition", s.condition("waypoint", "Programmed"), "False AddressNotAssigned")

		s.change("services", "waypoint", func(u *unstructured.Unstructured) { assign(t, u, []any{"10.0.0.9"}, "spec", "clusterIPs") })
		s.change("deployments", "waypoint", func(u *unstructured.Unstructured) { assign(t, u, int64(1), "status", "availableReplicas") })
		settled()
		equal(t, "programmed", s.condition("waypoint", "Programmed"), "True Programmed")
		s.take()

		s.change("deployments", "waypoint", func(u *unstructured.Unstructured) { assign(t, u, int64(2), "status", "availableReplicas") })
		settled()
		equal(t, "another pod: nothing is written", s.take(), "")

		s.change("deployments", "waypoint", func(u *unstructured.Unstructured) { assign(t, u, "changed", "spec", "template") })
		settled()
		equal(t, "changed by somebody", s.take(), "apply deployments shop/waypoint")

		s.gone(kindDeployment.Resource, "waypoint")
		settled()
		equal(t, "deleted by somebody", s.take(), "apply deployments shop/waypoint\napply status gateways shop/waypoint")

		s.gone(gateways, "waypoint")
		settled()
		equal(t, "deleted: the rest is the garbage collector's", s.take(), "")
	})
}

// TestParametersAreFollowed: they come late, change, and go.
func TestParametersAreFollowed(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.define()
		s.put(gateways, gatewayText("waypoint", withParameters))
		settled()
		equal(t, "without", s.condition("waypoint", "Accepted"), "False InvalidParameters")
		s.take()

		s.put(configMaps, parametersText(`{horizontalPodAutoscaler: "spec: {maxReplicas: 3}"}`))
		settled()
		equal(t, "with", s.take(), strings.Replace(allApplied, "\napply status", "\napply horizontalpodautoscalers shop/waypoint\napply status", 1))
		equal(t, "with", s.condition("waypoint", "Accepted"), "True Accepted")

		s.put(configMaps, parametersText(`{serviceAccount: "metadata: {annotations: {a: b}}"}`))
		settled()
		equal(t, "without an autoscaler", s.take(), "apply serviceaccounts shop/waypoint\ndelete horizontalpodautoscalers shop/waypoint")

		s.put(configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: defaults, namespace: culvert-system, labels: {gateway.istio.io/defaults-for-class: istio-waypoint}}\n"+
			`data: {podDisruptionBudget: "spec: {minAvailable: 1}"}`)
		settled()
		equal(t, "defaults of the class", s.take(), "apply poddisruptionbudgets shop/waypoint")
	})
}

// TestOneWrongGatewayStopsNoOther: a refused write is tried again, ever more
// seldom, is told in the status, and is done when it is possible.
func TestOneWrongGatewayStopsNoOther(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.define()
		settled()
		refused := apierrors.NewForbidden(schema.GroupResource{Resource: "deployments"}, "bad", errors.New("not allowed"))
		s.setRefusals(map[string]error{"apply deployments shop/bad": refused})
		s.put(gateways, gatewayText("bad", ""))
		s.put(gateways, gatewayText("good", ""))
		settled()
		equal(t, "good", s.condition("good", "Accepted"), "True Accepted")
		equal(t, "bad", s.condition("bad", "Programmed"), "False Pending")
		s.take()

		time.Sleep(10 * time.Minute)
		settled()
		if n := strings.Count(strings.Join(s.all(), "\n"), "refused apply deployments shop/bad"); n < 5 || n > 20 {
			t.Errorf("tried %d times in ten minutes", n)
		}
		s.setRefusals(nil)
		time.Sleep(2 * lastRetry)
		settled()
		if got := s.take(); !strings.Contains(got, "apply deployments shop/bad") {
			t.Errorf("it was not done when it became possible: %s", got)
		}
	})
}

// TestForeignObjectsAreNotTouched: a Service that a user has made stays his.
func TestForeignObjectsAreNotTouched(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.define()
		m := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint"}}
		if err := s.bare.Tracker().Create(kindService.Resource, m, "shop"); err != nil {
			t.Fatal(err)
		}
		settled()
		s.take()
		s.put(gateways, gatewayText("waypoint", ""))
		settled()
		equal(t, "writes", s.take(), "apply status gateways shop/waypoint")
		equal(t, "condition", s.condition("waypoint", "Programmed"), "False Invalid")
	})
}

// TestRoutesAreCounted: a route that comes or goes changes the count.
func TestRoutesAreCounted(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.define()
		s.put(gateways, gatewayText("waypoint", ""))
		settled()
		routes := gatewayGV.WithResource("httproutes")
		count := func() int64 {
			obj, err := s.client.Tracker().Get(gateways, "shop", "waypoint")
			if err != nil {
				t.Fatal(err)
			}
			list, _, _ := unstructured.NestedSlice(obj.(*unstructured.Unstructured).Object, "status", "listeners")
			switch n := list[0].(map[string]any)["attachedRoutes"].(type) {
			case int64:
				return n
			case float64:
				return int64(n)
			}
			return -1
		}
		s.put(routes, "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: waypoint}]}")
		settled()
		if n := count(); n != 1 {
			t.Errorf("%d routes, want 1", n)
		}
		s.put(routes, "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: other}]}")
		settled()
		if n := count(); n != 0 {
			t.Errorf("%d routes, want 0", n)
		}
	})
}

// TestTerminatingNamespaceIsLeftAlone: nothing can be made there, and it is not tried.
func TestTerminatingNamespaceIsLeftAlone(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.define()
		settled()
		err := apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, "waypoint", errors.New("because it is being terminated"))
		err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
		s.setRefusals(map[string]error{"apply serviceaccounts shop/waypoint": err})
		s.take()
		s.put(gateways, gatewayText("waypoint", ""))
		time.Sleep(time.Hour)
		settled()
		equal(t, "writes", s.take(), "refused apply serviceaccounts shop/waypoint")
	})
}

// change changes an object as somebody else does.
func (s *server) change(resource, name string, f func(*unstructured.Unstructured)) {
	s.t.Helper()
	for _, k := range made() {
		if k.Resource.Resource != resource {
			continue
		}
		obj, err := s.client.Tracker().Get(k.Resource, "shop", name)
		if err != nil {
			s.t.Fatal(err)
		}
		u := obj.(*unstructured.Unstructured).DeepCopy()
		f(u)
		s.stamp(u)
		if err := s.client.Tracker().Update(k.Resource, u, "shop"); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *server) gone(r schema.GroupVersionResource, name string) {
	s.t.Helper()
	if err := s.client.Tracker().Delete(r, "shop", name); err != nil {
		s.t.Fatal(err)
	}
}

func assign(t *testing.T, u *unstructured.Unstructured, v any, fields ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(u.Object, v, fields...); err != nil {
		t.Fatal(err)
	}
}
