package workloads

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
)

const perService = 10

func testUID(i int) mesh.UID {
	return mesh.UID(fmt.Sprintf("Kubernetes//Pod/ns-%d/app-%d-7d4f9c6b8d-%05d", i/perService%100, i/perService, i))
}

func testVIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

func testAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})
}

func testService(i int) mesh.ServiceName {
	ns := fmt.Sprint("ns-", i%100)
	return mesh.ServiceName{Namespace: ns, Hostname: fmt.Sprintf("app-%d.%s.svc.cluster.local", i, ns)}
}

func testWorkload(i int) *mesh.Workload {
	service := i / perService
	name := testService(service)
	return &mesh.Workload{
		UID: testUID(i), Name: fmt.Sprintf("app-%d-7d4f9c6b8d-%05d", service, i), Namespace: name.Namespace,
		Addresses: []netip.Addr{testAddr(i)}, Network: "network-1", Cluster: mesh.DefaultCluster,
		Protocol: mesh.HBONE, TrustDomain: mesh.DefaultTrustDomain, ServiceAccount: fmt.Sprint("app-", service),
		Node: fmt.Sprint("node-", i%1000), CanonicalName: fmt.Sprint("app-", service), CanonicalRevision: "v1",
		WorkloadType: mesh.Pod, WorkloadName: fmt.Sprint("app-", service), Capacity: 1,
		Locality: mesh.Locality{Region: "region-1", Zone: fmt.Sprint("zone-", i%3)},
		Policies: []mesh.PolicyName{{Namespace: name.Namespace, Name: fmt.Sprint("allow-", service)}},
		Services: []mesh.Membership{
			{Service: name, Ports: []mesh.Port{{Service: 80, Target: 8080}}},
			{Service: mesh.ServiceName{Namespace: name.Namespace, Hostname: "headless-" + name.Hostname}, Ports: []mesh.Port{{Service: 80, Target: 8080}, {Service: 9090, Target: 9090}}},
		},
	}
}

// wireCopy sends a workload over the wire, so that its strings are its own as
// those of a real one are.
func wireCopy(w *mesh.Workload) *mesh.Workload {
	b, err := proto.Marshal(workload.FromWorkload(w))
	if err != nil {
		panic(err)
	}
	var m workload.Workload
	if err := proto.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	out, err := workload.ToWorkload(&m)
	if err != nil {
		panic(err)
	}
	return out
}

func fill(s *Store, n int) {
	for i := range (n + perService - 1) / perService {
		name := testService(i)
		s.Apply(Update{Services: []*mesh.Service{{
			Name: fmt.Sprint("app-", i), Namespace: name.Namespace, Hostname: name.Hostname,
			VIPs:  []mesh.NetAddr{{Network: "network-1", Addr: testVIP(i)}},
			Ports: []mesh.Port{{Service: 80, Target: 8080}},
		}}})
	}
	for from := 0; from < n; from += 1000 {
		var u Update
		for i := from; i < min(from+1000, n); i++ {
			u.Workloads = append(u.Workloads, wireCopy(testWorkload(i)))
		}
		s.Apply(u)
	}
}

var sizes = []int{1_000, 200_000}

// BenchmarkFill also reports the heap that a full store keeps, per workload and
// in whole.
func BenchmarkFill(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var s *Store
			var before, after runtime.MemStats
			for b.Loop() {
				s = nil
				runtime.GC()
				runtime.ReadMemStats(&before)
				s = New()
				fill(s, n)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			live := float64(after.HeapAlloc) - float64(before.HeapAlloc)
			b.ReportMetric(live/float64(n), "B/workload")
			b.ReportMetric(live/1e6, "MB")
			runtime.KeepAlive(s)
		})
	}
}

// What a connection asks costs the same however many policies there are: only
// those of its namespace and those that its workload names are looked at.
func BenchmarkPoliciesFor(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New()
			var u Update
			for i := range n {
				name := mesh.PolicyName{Namespace: fmt.Sprint("ns-", i%100), Name: fmt.Sprint("allow-", i)}
				u.Policies = append(u.Policies, &mesh.Policy{Name: name, Scope: mesh.ScopeWorkloadSelector})
			}
			s.Apply(u)
			w := testWorkload(0)
			b.ReportAllocs()
			for b.Loop() {
				if list, missing := s.PoliciesFor(w); len(list) != 1 || len(missing) != 0 {
					b.Fatal(list, missing)
				}
			}
		})
	}
}

func BenchmarkApplyOne(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New()
			fill(s, n)
			pool := make([]*mesh.Workload, 0, 2048)
			for i := range cap(pool) {
				w := testWorkload(i * 7919 % n)
				w.Status = mesh.Health(i & 1)
				pool = append(pool, w)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				w := *pool[i%len(pool)]
				s.Apply(Update{Workloads: []*mesh.Workload{&w}})
				i++
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes {
		s := New()
		fill(s, n)
		var keys [1024]*mesh.Workload
		for i := range keys {
			keys[i] = testWorkload(i * 7919 % n)
		}
		run := func(name string, f func(*mesh.Workload) bool) {
			b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if !f(keys[i%len(keys)]) {
						b.Fatal("not found")
					}
					i++
				}
			})
		}
		run("WorkloadByAddr", func(w *mesh.Workload) bool {
			return s.WorkloadByAddr(mesh.NetAddr{Network: w.Network, Addr: w.Addresses[0]}) != nil
		})
		run("Workload", func(w *mesh.Workload) bool { return s.Workload(w.UID) != nil })
		run("WorkloadByInfo", func(w *mesh.Workload) bool {
			return s.WorkloadByInfo(mesh.PodInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, w.Node) != nil
		})
		run("Endpoints", func(w *mesh.Workload) bool { return len(s.Endpoints(w.Services[0].Service)) > 0 })
		run("ServiceByVIP", func(w *mesh.Workload) bool {
			return s.ServiceByVIP(mesh.NetAddr{Network: "network-1", Addr: testVIP(int(w.Addresses[0].As4()[3]) % 100)}, "ns-1") != nil
		})
	}
}
