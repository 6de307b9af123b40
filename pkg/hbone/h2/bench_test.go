//lint:file-ignore SA1019 x/net/http2's own Transport and Server are what we compare with

package h2

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/relay"
)

// A path makes connections from a client's socket to an address through two
// hops, in one of three ways, so that they can be compared in one run.
type path struct {
	name    string
	connect func(b *testing.B, authority string) *net.TCPConn
}

func paths(b *testing.B) []path {
	return []path{{"tunnel", tunnelPath(b)}, {"splice", splicePath(b)}, {"xnet", xnetPath(b)}}
}

func tunnelPath(b *testing.B) func(*testing.B, string) *net.TCPConn {
	m := newMesh(b, pumpTo)
	return func(b *testing.B, authority string) *net.TCPConn {
		c, _ := m.through(b, authority, nil)
		return c
	}
}

// splicePath is two plain relays one behind the other.
func splicePath(*testing.B) func(*testing.B, string) *net.TCPConn {
	first := make(map[string]string)
	return func(b *testing.B, authority string) *net.TCPConn {
		if first[authority] == "" {
			second := app(b, func(c *net.TCPConn) { relayTo(c, authority) })
			first[authority] = app(b, func(c *net.TCPConn) { relayTo(c, second) })
		}
		return dialApp(b, first[authority])
	}
}

func relayTo(c *net.TCPConn, authority string) {
	d, err := net.Dial("tcp", authority)
	if err != nil {
		return
	}
	defer d.Close()
	_ = relay.Copy(context.Background(), c, d.(*net.TCPConn), nil)
}

func dialApp(b testing.TB, addr string) *net.TCPConn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// xnetPath is the same tunnel made of x/net/http2's Transport and Server.
func xnetPath(b *testing.B) func(*testing.B, string) *net.TCPConn {
	ca := hbonetest.NewCA(b)
	addr := xnetServer(b, ca)
	rt := xnetTransport(b, ca)
	return func(b *testing.B, authority string) *net.TCPConn {
		client, proxy := hbonetest.TCPPair(b)
		go func() {
			defer proxy.Close()
			resp, err := rt.RoundTrip(xnetConnect(addr, authority, io.NopCloser(struct{ io.Reader }{proxy})))
			if err != nil {
				return
			}
			_, _ = io.CopyBuffer(struct{ io.Writer }{proxy}, resp.Body, make([]byte, 64<<10))
			_ = proxy.CloseWrite()
		}()
		return client
	}
}

func xnetConnect(addr, authority string, body io.ReadCloser) *http.Request {
	return &http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: addr}, Host: authority,
		Header: http.Header{"Baggage": {"service.name=client"}}, Body: body, ContentLength: -1,
	}
}

// xnetTransport is an x/net/http2 client that expects serverID.
func xnetTransport(t testing.TB, ca *hbonetest.CA) *http2.Transport {
	rt := &http2.Transport{TLSClientConfig: ca.Client(t, clientID, serverID), MaxReadFrameSize: 1 << 20}
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

// xnetServer serves CONNECT with x/net/http2 until the test ends.
func xnetServer(t testing.TB, ca *hbonetest.CA) string {
	ln := hbonetest.Listen(t)
	cfg := ca.Server(t, serverID)
	srv := &http2.Server{MaxReadFrameSize: 1 << 20, MaxUploadBufferPerStream: 4 << 20, MaxUploadBufferPerConnection: 16 << 20}
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			tc := tls.Server(c, cfg)
			go func() {
				defer tc.Close()
				if tc.Handshake() == nil {
					srv.ServeConn(tc, &http2.ServeConnOpts{Handler: http.HandlerFunc(xnetHandle)})
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func xnetHandle(w http.ResponseWriter, r *http.Request) {
	c, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(503)
		return
	}
	defer c.Close()
	w.Header().Set("Baggage", "service.name=app")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{c}, r.Body, make([]byte, 64<<10))
		_ = c.(*net.TCPConn).CloseWrite()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			_, _ = w.Write(buf[:n])
			w.(http.Flusher).Flush()
		}
		if err != nil {
			break
		}
	}
	wg.Wait()
}

// BenchmarkThroughput sends 1 MiB per operation and stream, one way.
func BenchmarkThroughput(b *testing.B) {
	for _, p := range paths(b) {
		for _, streams := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/streams=%d", p.name, streams), func(b *testing.B) { throughput(b, p, streams) })
		}
	}
}

func throughput(b *testing.B, p path, streams int) {
	addr := app(b, swallow)
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i] = p.connect(b, addr)
	}
	b.SetBytes(int64(streams) << 20)
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { push(c, b.N<<20) })
	}
	wg.Wait()
	b.ReportMetric(float64(streams)*float64(b.N)*8*(1<<20)/1e9/b.Elapsed().Seconds(), "Gbit/s")
}

// swallow reads everything and then says so by ending its direction.
func swallow(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// push sends size bytes and waits until they have been read.
func push(c *net.TCPConn, size int) {
	buf := make([]byte, 256<<10)
	for left := size; left > 0; {
		n, err := c.Write(buf[:min(left, len(buf))])
		if err != nil {
			return
		}
		left -= n
	}
	_ = c.CloseWrite()
	_, _ = c.Read(buf)
}

// BenchmarkPingPong sends 100 bytes there and back per operation.
func BenchmarkPingPong(b *testing.B) {
	for _, p := range paths(b) {
		for _, streams := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/streams=%d", p.name, streams), func(b *testing.B) { pingPong(b, p, streams) })
		}
	}
}

func pingPong(b *testing.B, p path, streams int) {
	addr := app(b, echo)
	var wg sync.WaitGroup
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i] = p.connect(b, addr)
		roundTrip(b, conns[i])
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i, c := range conns {
		n := b.N / streams
		if i < b.N%streams {
			n++
		}
		wg.Go(func() {
			for range n {
				roundTrip(b, c)
			}
		})
	}
	wg.Wait()
}

func roundTrip(b testing.TB, c net.Conn) {
	var msg [100]byte
	if _, err := c.Write(msg[:]); err != nil {
		b.Error(err)
		return
	}
	if _, err := io.ReadFull(c, msg[:]); err != nil {
		b.Error(err)
	}
}

// BenchmarkConnect opens a tunnelled connection, exchanges 100 bytes and ends it.
func BenchmarkConnect(b *testing.B) {
	for _, p := range paths(b) {
		b.Run(p.name, func(b *testing.B) {
			addr := app(b, echo)
			b.ReportAllocs()
			for b.Loop() {
				c := p.connect(b, addr)
				roundTrip(b, c)
				_ = c.Close()
			}
		})
	}
}

// BenchmarkOpen opens a stream and gives it back: both ends of a CONNECT and
// nothing else.
func BenchmarkOpen(b *testing.B) {
	m := newMesh(b, func(ctx context.Context, in *hbone.Incoming) {
		if s, err := in.Accept(hbone.Response{}); err == nil {
			_ = s.CloseWrite()
		}
	})
	req := request("10.0.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		s, _, err := m.pool.Open(context.Background(), m.peer, req)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		_ = s.Close()
	}
}

// BenchmarkIdle reports what an idle stream costs, both proxies together with
// the program at either end.
func BenchmarkIdle(b *testing.B) {
	const streams = 500
	m := newMesh(b, pumpTo)
	addr := app(b, echo)
	heap, stacks := inUse()
	for range streams {
		c, _ := m.through(b, addr, nil)
		roundTrip(b, c)
	}
	for b.Loop() { // what is measured does not depend on b.N
	}
	heap2, stacks2 := inUse()
	b.ReportMetric(float64(heap2-heap)/streams, "heapB/stream")
	b.ReportMetric(float64(stacks2-stacks)/streams, "stackB/stream")
}

// inUse returns the bytes of heap and of stacks in use.
func inUse() (heap, stacks uint64) {
	for range 6 {
		runtime.GC() // stacks shrink by half each time, pools empty
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse, m.StackInuse
}

// BenchmarkStalled is 99 streams of requests and one of bulk, alone and beside a
// stream whose destination takes nothing: what one stalled stream costs the others.
func BenchmarkStalled(b *testing.B) {
	for _, stalled := range []int{0, 1} {
		b.Run(fmt.Sprintf("stalled=%d", stalled), func(b *testing.B) { besideStalled(b, stalled) })
	}
}

func besideStalled(b *testing.B, stalled int) {
	m := newMesh(b, pumpTo, func(pc *PoolConfig, _ *ServerConfig) { pc.MaxStreams = 200 })
	echoes, sink := app(b, echo), app(b, swallow)
	stop := make(chan struct{})
	b.Cleanup(func() { close(stop) })
	stuck := app(b, func(*net.TCPConn) { <-stop })
	for range stalled {
		c, _ := m.through(b, stuck, nil)
		var sent atomic.Int64
		go flood(c, 64<<20, &sent)
		waitStill(b, &sent)
	}
	conns := make([]*net.TCPConn, 99)
	for i := range conns {
		conns[i], _ = m.through(b, echoes, nil)
		roundTrip(b, conns[i])
	}
	bulk, _ := m.through(b, sink, nil)
	var moved atomic.Int64
	go flood(bulk, 1<<40, &moved)
	b.ResetTimer()
	before := moved.Load()
	took := requests(b, conns, (b.N+len(conns)-1)/len(conns))
	b.ReportMetric(float64(moved.Load()-before)*8/1e9/b.Elapsed().Seconds(), "bulkGbit/s")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
}
