package discovery_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

// BenchmarkBurst measures how long a goroutine that is ready to run waits for the
// only thread while 10,000 of 50,000 workloads change: what a new connection
// suffers from a burst. It reports the longest and the 99th percentile.
func BenchmarkBurst(b *testing.B) {
	const known, burst = 50_000, 10_000
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	addresses := discovery.Addresses(workloads.New())
	addresses.Handle(resources(b, 0, known, "v1"), nil)
	updates := [2][]xds.Resource{resources(b, 0, burst, "v2"), resources(b, 0, burst, "v1")}
	var waits []time.Duration
	for i := 0; b.Loop(); i++ {
		done := make(chan struct{})
		go func() {
			defer close(done)
			addresses.Handle(updates[i%2], nil)
		}()
		waits = append(waits, waitsUntil(done)...)
	}
	slices.Sort(waits)
	b.ReportMetric(millis(waits[len(waits)*99/100]), "p99-ms")
	b.ReportMetric(millis(waits[len(waits)-1]), "longest-ms")
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// waitsUntil gives way again and again until done is closed and returns how long
// it took each time to run again.
func waitsUntil(done <-chan struct{}) (waits []time.Duration) {
	for {
		select {
		case <-done:
			return waits
		default:
			start := time.Now()
			runtime.Gosched()
			waits = append(waits, time.Since(start))
		}
	}
}

func resources(b testing.TB, from, to int, revision string) (out []xds.Resource) {
	for i := from; i < to; i++ {
		service := mesh.ServiceName{Namespace: fmt.Sprint("ns-", i/10%100), Hostname: fmt.Sprint("app-", i/10, ".svc")}
		w := &mesh.Workload{
			UID: mesh.UID(fmt.Sprint("Kubernetes//Pod/", service.Namespace, "/app-", i)), Name: fmt.Sprint("app-", i), Namespace: service.Namespace,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Protocol: mesh.HBONE,
			CanonicalRevision: revision, Capacity: 1,
			Services: []mesh.Membership{{Service: service, Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
		}
		body, err := anypb.New(&workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(w)}})
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, xds.Resource{Name: string(w.UID), Body: body})
	}
	return out
}
