package model_test

import (
	"fmt"
	"testing"

	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Sizes of the mesh that changes are measured in.
const (
	benchPods       = 10_000
	benchServices   = 1_000
	benchNamespaces = 10
	benchNodes      = 100
)

func benchNamespace(i int) string { return fmt.Sprint("ns", i%benchNamespaces) }

func benchService(i int, port int32) *source.Service {
	return &source.Service{
		Meta: source.Meta{Namespace: benchNamespace(i), Name: fmt.Sprint("svc", i)}, Type: "ClusterIP",
		ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250)}, Selector: map[string]string{"app": fmt.Sprint("app", i)},
		Ports: []source.ServicePort{{Name: "http", Port: 80, TargetPort: port, Protocol: "TCP"}},
	}
}

func benchPod(i int, ready bool) *source.Pod {
	s := i % benchServices
	return &source.Pod{
		Meta: source.Meta{Namespace: benchNamespace(s), Name: fmt.Sprint("pod", i), Labels: map[string]string{"app": fmt.Sprint("app", s), "version": "v1"},
			Annotations: map[string]string{compile.AnnotationRedirection: "enabled"}},
		ServiceAccount: fmt.Sprint("sa", s), Node: fmt.Sprint("node", i%benchNodes), Phase: "Running", Ready: ready,
		IPs: []string{fmt.Sprintf("10.%d.%d.%d", 100+i/62500, i/250%250, i%250)},
	}
}

// benchPolicy selects labels in a namespace, and lets in who comes from another.
func benchPolicy(namespace string, labels map[string]string, from int) *source.AuthorizationPolicy {
	spec := &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_DENY,
		Rules: []*security.Rule{{From: []*security.Rule_From{{Source: &security.Source{Namespaces: []string{fmt.Sprint("from", from)}}}}}}}
	if labels != nil {
		spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: labels}
	}
	return &source.AuthorizationPolicy{Meta: source.Meta{Namespace: namespace, Name: "bench"}, Spec: spec}
}

// benchMesh is a model of 10,000 pods and 1,000 services in 10 namespaces.
func benchMesh() *model.Model {
	var u source.Update
	for i := range benchNamespaces {
		u.Set = append(u.Set, &source.Namespace{Meta: source.Meta{Name: benchNamespace(i)}})
	}
	for i := range benchNodes {
		u.Set = append(u.Set, &source.Node{Meta: source.Meta{Name: fmt.Sprint("node", i)}})
	}
	for i := range benchServices {
		u.Set = append(u.Set, benchService(i, 8080))
	}
	for i := range benchPods {
		u.Set = append(u.Set, benchPod(i, true))
	}
	m := model.New(compile.Mesh{})
	m.Apply(u)
	return m
}

// BenchmarkChange measures one object's change in a large mesh, and counts the
// results that it made anew.
func BenchmarkChange(b *testing.B) {
	version := map[string]string{"version": "v1"}
	for _, c := range []struct {
		name   string
		change func(i int) source.Object
	}{
		{"pod", func(i int) source.Object { return benchPod(7, i%2 == 0) }},
		{"policy-of-1000-pods", func(i int) source.Object { return benchPolicy("ns3", version, i) }},
		{"policy-of-all-pods", func(i int) source.Object { return benchPolicy("istio-system", version, i) }},
		{"policy-of-a-namespace", func(i int) source.Object { return benchPolicy("ns3", nil, i) }},
		{"service-of-10-pods", func(i int) source.Object { return benchService(3, int32(8080+i%2)) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := benchMesh()
			m.Apply(source.Update{Set: []source.Object{c.change(-1)}})
			results := 0
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				results += len(m.Apply(source.Update{Set: []source.Object{c.change(i)}}))
			}
			b.ReportMetric(float64(results)/float64(b.N), "results/op")
		})
	}
}

// BenchmarkFirst measures the compilation of the whole mesh.
func BenchmarkFirst(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		benchMesh()
	}
}
