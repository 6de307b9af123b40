package app

import (
	"os"
	"runtime"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	authzpb "github.com/culvert-mesh/culvert/pkg/wire/authz"
)

func fds(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestNothingStays: a control plane that has ended, with clients still connected,
// leaves no goroutine and no descriptor behind.
func TestNothingStays(t *testing.T) {
	once := func() {
		p := newPlane(t, t.TempDir())
		var clients []*client
		for range 5 {
			c := p.connect(node1)
			c.subscribe(authzpb.TypeURL, nil)
			r := c.recv()
			c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
			clients = append(clients, c)
		}
		p.stop()
		for _, c := range clients {
			c.close()
		}
	}
	once() // what the runtime and libraries make once
	goroutines, files := runtime.NumGoroutine(), fds(t)
	for range 3 {
		once()
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines || fds(t) > files; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), goroutines, fds(t), files, buf[:runtime.Stack(buf, true)])
		}
		<-time.After(time.Millisecond)
	}
}
