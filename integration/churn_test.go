package integration

import (
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Pods that come and go, and rounds in which they do so.
const (
	churnPods   = 16
	churnRounds = 3
)

// TestPodsComeAndGo: a ztunnel that has served many pods, some of which left while
// their connections were being opened or were failing, holds what it held before.
func TestPodsComeAndGo(t *testing.T) {
	t.Parallel()
	f := newField(t)
	f.program = filepath.Join(bin, "ztunnel")
	client, server, a1, a2 := f.clientAndServer()
	var pods []*pod
	for i := range churnPods {
		pods = append(pods, f.pod(fmt.Sprintf("p%d", i), "node-1"))
	}
	z1 := f.ztunnel("node-1", a1, nil)
	f.ztunnel("node-2", a2, nil)
	client.exchange(t, server.IP4, 7000)

	before, heap := z1.holds(), 0
	for round := range churnRounds {
		each(pods, func(p *pod) {
			if err := a1.server.Add(t.Context(), p.uid(), p.info(), p.NS); err != nil {
				t.Error(err)
			}
		})
		each(pods, func(p *pod) {
			if p.exchange(t, server.IP4, 7000); p.refused(t, server.IP4, 7001) == nil {
				t.Error("connected where nobody listens")
			}
		})
		each(pods, func(p *pod) {
			var calls sync.WaitGroup
			for range 4 { // whatever becomes of them
				calls.Go(func() { p.refused(t, server.IP4, 7000) })
			}
			if err := a1.server.Delete(t.Context(), p.uid()); err != nil {
				t.Error(err)
			}
			calls.Wait()
		})
		z1.until("pods to be gone", func() bool {
			return strings.Contains(z1.get("http://127.0.0.1:15020/metrics"), "\nworkload_manager_active_proxy_count 1\n")
		})
		z1.until("descriptors and goroutines to be given back", func() bool {
			now := z1.holds()
			return now.descriptors <= before.descriptors+4 && now.goroutines <= before.goroutines+8
		})
		if round == 0 {
			heap = z1.heap()
		}
		// Each look collects garbage; buffers that are kept for the next go one by one.
		z1.until("memory to be given back", func() bool { return z1.heap() <= heap+2<<20 })
	}
	client.exchange(t, server.IP4, 7000)
	t.Logf("before %+v, after %d rounds %+v, heap %d, then %d bytes", before, churnRounds, z1.holds(), heap, z1.heap())
}

// holding is what a process must give back.
type holding struct{ descriptors, goroutines int }

func (z *ztunnel) holds() holding { return holding{z.descriptors(), z.goroutines()} }

// heap returns the bytes of live objects.
func (z *ztunnel) heap() int {
	m := regexp.MustCompile(`# HeapAlloc = (\d+)`).FindStringSubmatch(z.get("http://127.0.0.1:15000/debug/pprof/heap?debug=1&gc=1"))
	if m == nil {
		z.t.Fatal("no heap profile")
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func (p *pod) uid() mesh.PodUID { return mesh.PodUID("uid-" + p.name) }

func (p *pod) info() mesh.PodInfo {
	return mesh.PodInfo{Name: p.name, Namespace: "default", ServiceAccount: p.name}
}

// refused connects and waits for the end; the error says that there was nobody.
func (p *pod) refused(t *testing.T, addr netip.Addr, port uint16) error {
	c, err := p.NS.Dial(t.Context(), netip.AddrPortFrom(addr, port), netns.DialOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	c.CloseWrite()
	_, err = io.ReadAll(c)
	return err
}

// each does something with all pods at once.
func each(pods []*pod, do func(*pod)) {
	var all sync.WaitGroup
	for _, p := range pods {
		all.Go(func() { do(p) })
	}
	all.Wait()
}
