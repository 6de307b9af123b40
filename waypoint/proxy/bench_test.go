package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"net"
	stdhttp "net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/waypoint/listener"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// The two proxies side by side, with the same origin and the same clients: 64
// connections, each with one request under way.
//
//	ReverseProxy   httputil.ReverseProxy, plain TCP on both sides
//	Plain          ours, plain TCP on both sides: codec, routing and pool alone
//	HBONE          ours, tunnels with mutual TLS on both sides

const benchConns = 64

var benchRequest = []byte("GET /bench HTTP/1.1\r\nHost: cart\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")

var lengthField = []byte("Content-Length: ")

// rawOrigin answers every request with the same bytes, so that the proxies and
// not the origin are measured.
func rawOrigin(b *testing.B) string {
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n0123456789abcdef")
	return tcpOrigin(b, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			for {
				line, err := br.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// drive sends b.N requests over benchConns connections.
func drive(b *testing.B, connect func() (net.Conn, error)) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error, benchConns)
	conns := make([]net.Conn, benchConns)
	for i := range conns {
		c, err := connect()
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, c := range conns {
		go func() { done <- driveOne(c, &left) }()
	}
	for range benchConns {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

func driveOne(c net.Conn, left *atomic.Int64) error {
	br := bufio.NewReader(c)
	for left.Add(-1) >= 0 {
		if _, err := c.Write(benchRequest); err != nil {
			return err
		}
		length := 0
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) == 2 {
				break
			}
			if n := len(lengthField); len(line) > n && bytes.EqualFold(line[:n], lengthField) {
				length, _ = strconv.Atoi(string(line[n : len(line)-2]))
			}
		}
		if _, err := br.Discard(length); err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkReverseProxy(b *testing.B) {
	origin, _ := url.Parse("http://" + rawOrigin(b))
	rp := httputil.NewSingleHostReverseProxy(origin)
	rp.Transport = &stdhttp.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}
	addr := serveHTTP(b, &stdhttp.Server{Handler: rp})
	drive(b, func() (net.Conn, error) { return net.Dial("tcp", addr) })
}

func BenchmarkPlain(b *testing.B) {
	w := newWorld(b, options{quiet: true})
	origin := rawOrigin(b)
	w.pod("cart-1", "10.244.0.9", origin)
	to := w.known.Workload("Kubernetes//Pod/shop/cart-1")
	plain := *to
	plain.Protocol = mesh.TCP
	addr := netip.MustParseAddrPort(origin)
	plain.Addresses = append(plain.Addresses[:0:0], addr.Addr())
	plain.Services = []mesh.Membership{{Service: service, Ports: []mesh.Port{{Service: 80, Target: addr.Port()}}}}
	w.known.Apply(workloads.Update{Workloads: []*mesh.Workload{&plain}})
	front := tcpOrigin(b, func(c *net.TCPConn) {
		w.proxy.HTTP(context.Background(), &listener.Conn{Caller: listener.Caller{Identity: frontend}, Name: "shop/cart/80", Stream: stream.FromTCP(c)})
	})
	drive(b, func() (net.Conn, error) { return net.Dial("tcp", front) })
}

func BenchmarkHBONE(b *testing.B) {
	w := newWorld(b, options{quiet: true})
	w.pod("cart-1", "10.244.0.9", rawOrigin(b))
	drive(b, func() (net.Conn, error) { return w.connect(context.Background(), vip.String()+":80") })
}
