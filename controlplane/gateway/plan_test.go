package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

// TestPlan runs the cases of testdata/plan. What a case says:
//
//	gateway.yaml, class.yaml, parameters.yaml, defaults.yaml    objects; all but the first may be absent
//	live.yaml, routes.yaml                                      objects that are there
//	namespaces.yaml                                             labels, by namespace
//	options.yaml                                                Options
//	hosts, foreign                                              one per line
//	applied                                                     what went wrong in applying: "invalid …" or "forbidden …"
//	want                                                        what is to be done, and the status
//	objects                                                     what is applied, in full
func TestPlan(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/plan/*.txtar", func(t *testing.T, c *golden.Case) {
		in := inputs(t, c)
		before := fmt.Sprintf("%#v", in.Gateway)
		p := MakePlan(in)
		c.Want(t, "want", report(t, in, p, appliedError(t, c)))
		if c.Has("objects") {
			var all [][]byte
			for _, o := range p.Apply {
				all = append(all, marshal(t, o.Body))
			}
			c.Want(t, "objects", string(bytes.Join(all, []byte("---\n"))))
		}
		if fmt.Sprintf("%#v", in.Gateway) != before {
			t.Error("the plan has changed the Gateway")
		}
	})
}

func inputs(t *testing.T, c *golden.Case) Inputs {
	t.Helper()
	namespaces := map[string]map[string]string{}
	read(t, c, "namespaces.yaml", &namespaces)
	in := Inputs{
		Gateway: &gatewayv1.Gateway{}, Hosts: map[string]bool{},
		Labels:  func(ns string) map[string]string { return namespaces[ns] },
		Options: Options{Image: "culvert.local/waypoint:1", XDSAddress: "https://culvert-controlplane.culvert-system.svc:15012", RootNamespace: "culvert-system"},
	}
	read(t, c, "gateway.yaml", in.Gateway)
	in.Namespace = namespaces[in.Gateway.Namespace]
	read(t, c, "options.yaml", &in.Options)
	if c.Has("class.yaml") {
		in.Class = &gatewayv1.GatewayClass{}
		read(t, c, "class.yaml", in.Class)
	}
	if c.Has("parameters.yaml") {
		in.Parameters = &corev1.ConfigMap{}
		read(t, c, "parameters.yaml", in.Parameters)
	}
	if c.Has("defaults.yaml") {
		in.Defaults = &corev1.ConfigMap{}
		read(t, c, "defaults.yaml", in.Defaults)
	}
	for _, o := range list(t, c, "live.yaml") {
		in.Live = append(in.Live, Trim(o, Controllers()...))
	}
	for _, o := range list(t, c, "routes.yaml") {
		in.Routes = append(in.Routes, trimRoute(o).(*Route))
	}
	for _, h := range lines(t, c, "hosts") {
		in.Hosts[h] = true
	}
	in.Foreign = lines(t, c, "foreign")
	return in
}

func read(t *testing.T, c *golden.Case, section string, into any) {
	t.Helper()
	if !c.Has(section) {
		return
	}
	if err := yaml.UnmarshalStrict(c.Section(t, section), into); err != nil {
		t.Fatalf("%s: %v", section, err)
	}
}

func list(t *testing.T, c *golden.Case, section string) (out []*unstructured.Unstructured) {
	t.Helper()
	if !c.Has(section) {
		return nil
	}
	for _, doc := range bytes.Split(c.Section(t, section), []byte("---\n")) {
		raw, err := yaml.YAMLToJSON(doc)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw); err != nil {
			t.Fatalf("%s: %v", section, err)
		}
		out = append(out, u)
	}
	return out
}

func lines(t *testing.T, c *golden.Case, section string) []string {
	t.Helper()
	if !c.Has(section) {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(c.Section(t, section))), "\n")
}

func appliedError(t *testing.T, c *golden.Case) error {
	t.Helper()
	if !c.Has("applied") {
		return nil
	}
	text := strings.TrimSpace(string(c.Section(t, "applied")))
	kind, rest, _ := strings.Cut(text, " ")
	resource := schema.GroupResource{Group: "apps", Resource: "deployments"}
	switch kind {
	case "invalid":
		return apierrors.NewBadRequest(rest)
	case "forbidden":
		return apierrors.NewForbidden(resource, "waypoint", errors.New(rest))
	}
	t.Fatalf("applied: %q", text)
	return nil
}

// report is a plan as text: names of objects, and the status.
func report(t *testing.T, in Inputs, p Plan, applied error) string {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "controller: %s\n", p.Controller)
	for _, o := range p.Apply {
		fmt.Fprintf(&out, "apply: %s %s\n", o.Kind.Kind, o.Name)
	}
	for _, l := range p.Remove {
		fmt.Fprintf(&out, "remove: %s %s\n", l.Kind, l.Name)
	}
	if p.Controller == "" {
		return out.String()
	}
	s := p.Status(in, applied)
	for _, c := range s.Conditions {
		fmt.Fprintf(&out, "%s: %s %s: %s (generation %d)\n", c.Type, c.Status, c.Reason, c.Message, c.ObservedGeneration)
	}
	for _, a := range s.Addresses {
		fmt.Fprintf(&out, "address: %s %s\n", *a.Type, a.Value)
	}
	for _, l := range s.Listeners {
		fmt.Fprintf(&out, "listener %s: %d routes of %v\n", l.Name, l.AttachedRoutes, kindNames(l.SupportedKinds))
		for _, c := range l.Conditions {
			fmt.Fprintf(&out, "  %s: %s %s %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	return strings.ReplaceAll(out.String(), " \n", "\n")
}

func kindNames(kinds []gatewayv1.RouteGroupKind) []string {
	names := []string{}
	for _, k := range kinds {
		names = append(names, string(k.Kind))
	}
	return names
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestPlanIsStable: the same inputs make the same bytes, or everything would be
// applied again and again.
func TestPlanIsStable(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/plan/parameters.txtar", func(t *testing.T, c *golden.Case) {
		first := MakePlan(inputs(t, c))
		for range 20 {
			again := MakePlan(inputs(t, c))
			for i, o := range again.Apply {
				if sum("m", o.Body) != sum("m", first.Apply[i].Body) {
					t.Fatalf("%s %s differs", o.Kind.Kind, o.Name)
				}
			}
		}
	})
}

func TestClassStatus(t *testing.T) {
	t.Parallel()
	status := func(name string, parameters *gatewayv1.ParametersReference) string {
		s := ClassStatus(&gatewayv1.GatewayClass{ObjectMeta: objectMeta(name, 3), Spec: gatewayv1.GatewayClassSpec{
			ControllerName: ControllerIstio, ParametersRef: parameters}})
		c := s.Conditions[0]
		names := []string{}
		for _, f := range s.SupportedFeatures {
			names = append(names, string(f.Name))
		}
		if !slices.IsSorted(names) || len(names) > 64 {
			t.Errorf("features %v", names)
		}
		return fmt.Sprintf("%s %s %d features=%v", c.Status, c.Reason, c.ObservedGeneration, slices.Contains(names, "HTTPRoute"))
	}
	for want, got := range map[string]string{
		"True Accepted 3 features=true":            status("istio-waypoint", nil),
		"False Unsupported 3 features=false":       status("istio", nil),
		"False InvalidParameters 3 features=false": status("my-waypoint", &gatewayv1.ParametersReference{Kind: "ConfigMap", Name: "x"}),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestOldestDefaults: of several ConfigMaps for a class one is taken, always the same.
func TestOldestDefaults(t *testing.T) {
	t.Parallel()
	of := func(name, class string, age int) *corev1.ConfigMap {
		cm := &corev1.ConfigMap{ObjectMeta: objectMeta(name, 0)}
		cm.CreationTimestamp.Time = cm.CreationTimestamp.AddDate(0, 0, 10-age)
		cm.Labels = map[string]string{LabelDefaultsForClass: class}
		return cm
	}
	all := []*corev1.ConfigMap{of("c", "istio-waypoint", 1), of("b", "istio-waypoint", 2), of("a", "istio-waypoint", 2), of("old", "other", 9)}
	for range 2 {
		if got := defaultsFor("istio-waypoint", all); got == nil || got.Name != "a" {
			t.Errorf("got %v", got)
		}
		slices.Reverse(all)
	}
	if got := defaultsFor("none", all); got != nil {
		t.Errorf("got %v", got)
	}
}

// TestFeatures: nothing is claimed that Gateway API does not know.
func TestFeatures(t *testing.T) {
	t.Parallel()
	if got := sortedFeatures([]string{"b", "a", "b"}); len(got) != 2 || got[0].Name != "a" {
		t.Errorf("got %v", got)
	}
	if len(slices.Collect(maps.Keys(set(features())))) != len(features()) {
		t.Error("a feature is named twice")
	}
}
