package gateway

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// FuzzPlan: whatever a Gateway, its parameters and what is there look like, there is
// a plan and a status, and the plan stays within the Gateway's namespace and names.
func FuzzPlan(f *testing.F) {
	paths, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		seed := map[string]string{}
		for _, file := range a.Files {
			seed[file.Name] = string(file.Data)
		}
		f.Add(seed["gateway.yaml"], seed["parameters.yaml"], seed["live.yaml"])
	}
	f.Fuzz(func(t *testing.T, gateway, parameters, live string) {
		in := Inputs{Gateway: &gatewayv1.Gateway{}, Parameters: &corev1.ConfigMap{}}
		var u unstructured.Unstructured
		if yaml.Unmarshal([]byte(gateway), in.Gateway) != nil || yaml.Unmarshal([]byte(parameters), in.Parameters) != nil {
			return
		}
		if yaml.Unmarshal([]byte(live), &u.Object) == nil {
			in.Live = append(in.Live, Trim(&u, Controllers()...))
		}
		if route, ok := trimRoute(&u).(*Route); ok {
			in.Routes = append(in.Routes, route)
		}
		in.Gateway.Spec.GatewayClassName = ClassIstioWaypoint
		p := MakePlan(in)
		if _, err := json.Marshal(p.Status(in, nil)); err != nil {
			t.Error(err)
		}
		for _, o := range p.Apply {
			m := (&unstructured.Unstructured{Object: o.Body})
			if m.GetNamespace() != in.Gateway.Namespace || m.GetName() != o.Name || strings.Contains(o.Name, "/") && !strings.Contains(in.Gateway.Name, "/") {
				t.Errorf("%s %s/%s is planned for Gateway %s/%s", o.Kind.Kind, m.GetNamespace(), m.GetName(), in.Gateway.Namespace, in.Gateway.Name)
			}
			if in.Gateway.UID != "" && (len(m.GetOwnerReferences()) != 1 || m.GetOwnerReferences()[0].UID != in.Gateway.UID) {
				t.Errorf("%s %s has owners %v", o.Kind.Kind, o.Name, m.GetOwnerReferences())
			}
		}
	})
}

// TestNamesThatArePaths: a name that a user chooses reaches no other resource.
func TestNamesThatArePaths(t *testing.T) {
	t.Parallel()
	for _, annotation := range []string{AnnotationNameOverride, AnnotationServiceAccount} {
		for _, name := range []string{"../../../../api/v1/namespaces/kube-system/secrets/x", "a/b", "..", "A", strings.Repeat("a", 300)} {
			in := Inputs{Gateway: &gatewayv1.Gateway{}}
			if err := yaml.Unmarshal([]byte(gatewayText("waypoint", "")), in.Gateway); err != nil {
				t.Fatal(err)
			}
			in.Gateway.Annotations = map[string]string{annotation: name}
			p := MakePlan(in)
			if len(p.Apply) > 0 || p.refused == nil || p.refused.reason != gatewayv1.GatewayReasonInvalidParameters || !strings.Contains(p.refused.message, annotation) {
				t.Errorf("%s: %.40q: %d objects, %v", annotation, name, len(p.Apply), p.refused)
			}
		}
	}
}

// TestMadeMeanwhile: what somebody else makes between our look and our apply is not
// taken over.
func TestMadeMeanwhile(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		var once sync.Once
		s.bare.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
			defer once.Do(func() {
				s.put(kindDeployment.Resource, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: waypoint, namespace: shop}\nspec: {replicas: 7}")
				s.meta(kindDeployment.Resource, "shop", "waypoint", nil, "1")
			})
			return true, nil, apierrors.NewNotFound(kindDeployment.Resource.GroupResource(), "waypoint")
		})
		s.define() // after that the client is in use
		s.put(gateways, gatewayText("waypoint", ""))
		time.Sleep(time.Second)
		obj, err := s.client.Tracker().Get(kindDeployment.Resource, "shop", "waypoint")
		if err != nil {
			t.Fatal(err)
		}
		if u := obj.(*unstructured.Unstructured); len(u.GetOwnerReferences()) > 0 {
			t.Error("somebody else's Deployment is ours now")
		}
	})
}

// TestPanic: an object that nobody thought of ends neither the controller nor the
// work on others.
func TestPanic(t *testing.T) {
	run(t, func(t *testing.T, s *server) {
		s.client.PrependReactor("patch", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.(clienttesting.PatchAction).GetName() == "bad" {
				panic("nobody thought of that")
			}
			return false, nil, nil
		})
		s.define() // after that the client is in use
		s.put(gateways, gatewayText("bad", ""))
		s.put(gateways, gatewayText("good", ""))
		time.Sleep(time.Second)
		if _, err := s.client.Tracker().Get(kindDeployment.Resource, "shop", "good"); err != nil {
			t.Error(err)
		}
	})
}

// TestHostnamesThatArePaths: neither does an address.
func TestHostnamesThatArePaths(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	asked := 0
	s.bare.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) { asked++; return false, nil, nil })
	term := &term{Controller: New(Config{Client: s.client, Metadata: s.bare})}
	for _, host := range []string{"a/../../b", "a/b.c.svc.cluster.local", "a.../../c.svc", "..", ""} {
		if ok, err := term.serviceExists(t.Context(), "shop", host); ok || err != nil {
			t.Errorf("%q: %v %v", host, ok, err)
		}
	}
	if asked > 0 {
		t.Errorf("the API server was asked %d times", asked)
	}
}

// TestForeign: what was made for another Gateway is not taken over, and only the very
// object that was seen is deleted.
func TestForeign(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	term := &term{Controller: New(Config{Client: s.client, Metadata: s.bare})}
	in := Inputs{Gateway: &gatewayv1.Gateway{}}
	in.Gateway.Namespace, in.Gateway.Name = "shop", "waypoint"
	plan := Plan{Apply: []Object{{Kind: kindService, Name: "waypoint"}}}
	for gateway, foreign := range map[string]bool{"waypoint": false, "another": true} {
		s.meta(kindService.Resource, "shop", "waypoint", map[string]string{LabelManaged: ManagedMesh, LabelGatewayName: gateway}, "1")
		if names, err := term.foreign(t.Context(), in, plan); err != nil || (len(names) > 0) != foreign {
			t.Errorf("made for %s: %v, %v", gateway, names, err)
		}
	}
	var asked clienttesting.DeleteActionImpl
	s.client.PrependReactor("delete", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked = a.(clienttesting.DeleteActionImpl)
		return true, nil, nil
	})
	l := &Live{Kind: kindService.Kind}
	l.Namespace, l.Name, l.UID = "shop", "waypoint", "seen"
	if err := term.remove(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if p := asked.DeleteOptions.Preconditions; p == nil || p.UID == nil || *p.UID != "seen" {
		t.Errorf("deleted with %+v", p)
	}
}
