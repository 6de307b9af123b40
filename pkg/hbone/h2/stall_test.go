package h2

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// One of 100 streams on a tunnel has a destination that takes nothing, while
// its client sends as much as it can. The others' requests go on as before, and
// what is buffered for it stays within its window.
func TestOneStalledDestination(t *testing.T) {
	const streams, rounds = 99, 40
	budget := hbone.NewBudget(64 << 20)
	m := newMesh(t, pumpTo, func(pc *PoolConfig, sc *ServerConfig) {
		pc.MaxStreams, pc.Budget, sc.Budget = 200, budget, budget
	})
	release := make(chan struct{})
	var drained atomic.Int64
	stuck := app(t, func(c *net.TCPConn) {
		<-release
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			drained.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	client, ended := m.through(t, stuck, nil)
	echoes := app(t, echo)
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i], _ = m.through(t, echoes, nil)
	}
	measure := func() []time.Duration { return requests(t, conns, rounds) }
	measure() // warm up
	before := measure()

	sent := make(chan int64, 1)
	var progress atomic.Int64
	go func() { sent <- flood(client, 32<<20, &progress) }()
	waitStill(t, &progress)

	// That they complete is the condition; how long they take depends on what else
	// the machine does.
	b50, b90 := quantiles(before)
	d50, d90 := quantiles(measure())
	t.Logf("request latency p50, p90: %v, %v before; %v, %v with a stalled stream", b50, b90, d50, d90)
	if used, size := budget.Used(); used > size/4 {
		t.Errorf("one stalled stream holds %d bytes", used)
	}
	if len(m.pool.Snapshot()) != 1 {
		t.Errorf("%d connections, want the stalled stream and the others on one", len(m.pool.Snapshot()))
	}

	close(release)
	if n := <-sent; n != 32<<20 {
		t.Errorf("sent %d bytes after the release", n)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	hbonetest.Until(t, "everything to arrive", func() bool { return drained.Load() == 32<<20 })
	hbonetest.Until(t, "the budget to be given back", func() bool { used, _ := budget.Used(); return used < 32<<20 })
}

// requests does so many round trips on every connection at once and returns how
// long each took.
func requests(t testing.TB, conns []*net.TCPConn, rounds int) []time.Duration {
	t.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			took := make([]time.Duration, rounds)
			for i := range took {
				start := time.Now()
				roundTrip(t, c)
				took[i] = time.Since(start)
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all
}

func quantiles(d []time.Duration) (p50, p90 time.Duration) {
	slices.Sort(d)
	return d[len(d)/2], d[len(d)*9/10]
}

// flood sends size bytes and ends its direction.
func flood(c *net.TCPConn, size int, progress *atomic.Int64) int64 {
	buf := make([]byte, 64<<10)
	for progress.Load() < int64(size) {
		n, err := c.Write(buf)
		progress.Add(int64(n))
		if err != nil {
			break
		}
	}
	_ = c.CloseWrite()
	return progress.Load()
}

// waitStill waits until a count has stopped to move.
func waitStill(t testing.TB, n *atomic.Int64) {
	t.Helper()
	last, same := int64(-1), 0
	hbonetest.Until(t, "the sender to be held up", func() bool {
		if now := n.Load(); now != last || now == 0 {
			last, same = now, 0
		} else {
			same++
		}
		return same > 50
	})
}

// More streams stall than the budget has room for: what is buffered stays within
// it, and everything arrives when the destinations go on.
func TestBudgetExhausted(t *testing.T) {
	t.Parallel()
	const streams, each = 30, 512 << 10
	budget := hbone.NewBudget(2 << 20)
	m := newMesh(t, pumpSmall, func(_ *PoolConfig, sc *ServerConfig) { sc.Budget = budget })
	release := make(chan struct{})
	var sent, arrived atomic.Int64
	stuck := app(t, func(c *net.TCPConn) {
		_ = c.SetReadBuffer(64 << 10)
		<-release
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	var wg sync.WaitGroup
	for range streams {
		client, _ := m.through(t, stuck, nil)
		_ = client.SetWriteBuffer(64 << 10)
		wg.Go(func() { write(client, each, &sent) })
	}
	defer wg.Wait()
	waitStill(t, &sent)
	if used, size := budget.Used(); used > size {
		t.Errorf("%d bytes of %d are buffered", used, size)
	}
	close(release)
	hbonetest.Until(t, "everything to arrive", func() bool { return arrived.Load() == streams*each })
	hbonetest.Until(t, "the budget to be given back", func() bool { used, _ := budget.Used(); return used < 1<<20 })
}

// write sends size bytes in pieces, counted in progress, and ends the direction.
func write(w interface {
	io.Writer
	CloseWrite() error
}, size int, progress *atomic.Int64) {
	buf := make([]byte, 32<<10)
	for left := size; left > 0; {
		n, err := w.Write(buf[:min(left, len(buf))])
		progress.Add(int64(n))
		if left -= n; err != nil {
			return
		}
	}
	_ = w.CloseWrite()
}

// A thousand streams over ten connections, none of which is read: what the whole
// node promises and holds stays within its budget, windows of the connections
// included, and in memory too.
func TestThousandStalled(t *testing.T) {
	const streams, each = 1000, 64 << 10
	budget := hbone.NewBudget(24 << 20)
	release := make(chan struct{})
	var arrived atomic.Int64
	m := newMesh(t, func(_ context.Context, in *hbone.Incoming) {
		s, err := in.Accept(hbone.Response{})
		if err != nil {
			return
		}
		<-release
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{s})
		arrived.Add(n)
	}, func(pc *PoolConfig, sc *ServerConfig) { sc.Budget = budget })
	before := Buffered()
	var sent atomic.Int64
	var wg sync.WaitGroup
	for range streams {
		s := m.open(t, "10.0.0.1:80")
		wg.Go(func() { write(s, each, &sent) })
	}
	if n := len(m.pool.Snapshot()); n < 10 {
		t.Errorf("%d connections", n)
	}
	hbonetest.Until(t, "the budget to be used", func() bool { used, size := budget.Used(); return used >= size/8 })
	waitStill(t, &sent)
	used, size := budget.Used()
	held := Buffered() - before
	t.Logf("%d of %d bytes of the budget in use, %d in blocks, %d sent", used, size, held, sent.Load())
	if used > size {
		t.Errorf("%d bytes of the budget's %d are in use", used, size)
	}
	if held > size {
		t.Errorf("%d bytes are held in blocks, the budget is %d", held, size)
	}
	close(release)
	wg.Wait()
	hbonetest.Until(t, "everything to arrive", func() bool { return arrived.Load() == streams*each })
	_ = m.pool.Close()
	hbonetest.Until(t, "the budget to be given back", func() bool { used, _ := budget.Used(); return used == 0 })
	hbonetest.Until(t, "the blocks to be given back", func() bool { return Buffered() <= before })
}

// pumpSmall is pumpTo with small buffers in the kernel.
func pumpSmall(ctx context.Context, in *hbone.Incoming) {
	addr, err := netip.ParseAddrPort(in.Request.Authority)
	if err != nil {
		return
	}
	conn, err := dialTCP(ctx, addr)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetWriteBuffer(64 << 10)
	if s, err := in.Accept(hbone.Response{}); err == nil {
		_ = s.Pump(ctx, conn, nil)
	}
}
