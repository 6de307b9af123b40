package app

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/culvert-mesh/culvert/controlplane/source"
	workloadpb "github.com/culvert-mesh/culvert/pkg/wire/workload"
)

// cluster is a source of 10,000 pods and 1,000 services in 10 namespaces.
func cluster(pods, services int) source.Update {
	var u source.Update
	for i := range 10 {
		u.Set = append(u.Set, &source.Namespace{Meta: source.Meta{Name: fmt.Sprint("ns", i)}})
	}
	for i := range services {
		u.Set = append(u.Set, &source.Service{
			Meta: source.Meta{Namespace: fmt.Sprint("ns", i%10), Name: fmt.Sprint("svc", i)}, Type: "ClusterIP",
			ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250)}, Selector: map[string]string{"app": fmt.Sprint("app", i)},
			Ports: []source.ServicePort{{Name: "http", Port: 80, TargetPort: 8080, Protocol: "TCP"}},
		})
	}
	for i := range pods {
		u.Set = append(u.Set, benchPod(i, services, true))
	}
	return u
}

func benchPod(i, services int, ready bool) *source.Pod {
	s := i % services
	return &source.Pod{
		Meta: source.Meta{Namespace: fmt.Sprint("ns", s%10), Name: fmt.Sprint("pod", i), Labels: map[string]string{"app": fmt.Sprint("app", s), "version": "v1"},
			Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		ServiceAccount: fmt.Sprint("sa", s), Node: fmt.Sprint("node", i%100), Phase: "Running", Ready: ready,
		IPs: []string{fmt.Sprintf("10.%d.%d.%d", 100+i/62500, i/250%250, i%250)},
	}
}

// BenchmarkPodChange measures one pod's change from the source to every one of
// ten connected ztunnels, over TLS on loopback, in a mesh of 10,000 pods and
// 1,000 services. It reports the median and the 99th percentile.
func BenchmarkPodChange(b *testing.B) {
	p := newPlane(b, b.TempDir())
	<-p.app.first
	p.app.update(cluster(10_000, 1_000))
	var clients []*client
	for range 10 {
		c := p.connect(node1)
		c.subscribe(workloadpb.TypeURL, nil)
		r := c.recv()
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
		if len(r.Resources) != 11_000 {
			b.Fatalf("%d resources", len(r.Resources))
		}
		clients = append(clients, c)
	}
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	took := make([]time.Duration, 0, b.N)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		p.app.update(source.Update{Set: []source.Object{benchPod(i%10_000, 1_000, i/10_000%2 == 1)}})
		for _, c := range clients {
			r := c.recv()
			c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
		}
		took = append(took, time.Since(start))
	}
	b.ReportMetric(float64(mem.HeapAlloc)/1e6, "MB-heap")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}

// BenchmarkFirst measures the compilation of the whole mesh at start.
func BenchmarkFirst(b *testing.B) {
	u := cluster(10_000, 1_000)
	for b.Loop() {
		p := newPlane(b, b.TempDir())
		<-p.app.first
		p.app.update(u)
		b.StopTimer()
		p.stop()
		b.StartTimer()
	}
}
