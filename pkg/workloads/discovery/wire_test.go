package discovery_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

// serveUpdates makes TestServeUpdates the server of BenchmarkBurstFromServer.
var serveUpdates = flag.Bool("serve-updates", false, "serve workloads and update 10,000 of them for each line read")

const (
	burstKnown = 50_000
	burstSize  = 10_000
)

// TestServeUpdates is a control plane in a process of its own, so that what it
// costs is not taken for the client's.
func TestServeUpdates(t *testing.T) {
	if !*serveUpdates {
		t.Skip("it is a part of BenchmarkBurstFromServer")
	}
	server := xdstest.New(t, nil)
	set := func(n int, revision string) {
		server.Hold(true)
		for _, r := range resources(t, 0, n, revision) {
			server.Set(workload.TypeURL, r.Name, revision, r.Body)
		}
		server.Hold(false)
	}
	set(burstKnown, "v0")
	fmt.Println(server.URL())
	in := bufio.NewScanner(os.Stdin)
	for i := 1; in.Scan(); i++ {
		set(burstSize, fmt.Sprint("v", i))
	}
}

// BenchmarkBurstFromServer is BenchmarkBurst with everything that a control plane's
// updates pass through: gRPC, decoding, the store, collecting the garbage. Waiting
// is counted in the process's own CPU time, which on one thread is what a
// connection would wait for on a machine that has nothing else to do; the
// percentiles are those of connections that come at any time of the burst.
func BenchmarkBurstFromServer(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	url, push := updateServer(b)
	applied := make(chan struct{}, 1)
	got := 0
	addresses := discovery.Addresses(workloads.New())
	handle := addresses.Handle
	addresses.Handle = func(added []xds.Resource, removed []string) []xds.Rejected {
		rejected := handle(added, removed)
		if got += len(added); got == burstKnown || got > burstKnown && (got-burstKnown)%burstSize == 0 {
			applied <- struct{}{}
		}
		return rejected
	}
	client, err := xds.NewClient(xds.Config{
		Address: url, NodeID: "ztunnel~1.1.1.1~z.culvert-system~culvert-system.svc.cluster.local",
		Types: []xds.Subscription{addresses}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	<-applied
	runtime.GC()
	var waits []time.Duration
	for b.Loop() {
		push()
		waits = append(waits, cpuWaits(applied)...)
	}
	slices.Sort(waits)
	b.ReportMetric(millis(arrivals(waits, 0.50)), "p50-ms")
	b.ReportMetric(millis(arrivals(waits, 0.99)), "p99-ms")
	b.ReportMetric(millis(waits[len(waits)-1]), "longest-ms")
}

// updateServer starts TestServeUpdates and returns its address, and what makes it
// push a burst.
func updateServer(b *testing.B) (url string, push func()) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestServeUpdates$", "-serve-updates")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), func() { _, _ = io.WriteString(stdin, "\n") }
}

// cpuWaits gives way again and again until done and returns how much CPU time the
// process used each time before it could run again.
func cpuWaits(done <-chan struct{}) (waits []time.Duration) {
	for before := cpuTime(); ; {
		select {
		case <-done:
			return waits
		default:
		}
		runtime.Gosched()
		now := cpuTime()
		waits = append(waits, now-before)
		before = now
	}
}

func cpuTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// arrivals returns how long the part q of those waits at most who come at any time,
// when the turns that follow each other are as long as waits, which is sorted.
func arrivals(waits []time.Duration, q float64) time.Duration {
	var total time.Duration
	for _, w := range waits {
		total += w
	}
	// Of a turn of length w, w-x is for those who wait longer than x.
	over, n := time.Duration(0), 0
	for i := len(waits) - 1; i >= 0; i-- {
		over += waits[i]
		n++
		// With x between the next shorter turn and this one, over - n·x is the time of
		// those who wait longer.
		x := time.Duration((float64(over) - (1-q)*float64(total)) / float64(n))
		if i == 0 || x >= waits[i-1] {
			return max(0, x)
		}
	}
	return 0
}
