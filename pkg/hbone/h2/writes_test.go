package h2

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// tap passes connections on to addr and counts the TLS records of the first
// direction, by what their headers say.
type tap struct{ records, bytes atomic.Int64 }

func (k *tap) listen(t *testing.T, addr netip.AddrPort) netip.AddrPort {
	ln := hbonetest.Listen(t)
	go func() {
		for {
			in, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr.String())
			if err != nil {
				_ = in.Close()
				return
			}
			go func() {
				_, _ = io.Copy(in, out)
				_ = in.CloseWrite()
			}()
			go func() {
				k.count(io.TeeReader(in, out))
				_ = out.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func (k *tap) count(r io.Reader) {
	var header [5]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return
		}
		n, err := io.CopyN(io.Discard, r, int64(header[3])<<8|int64(header[4]))
		k.records.Add(1)
		k.bytes.Add(n)
		if err != nil {
			return
		}
	}
}

// A tunnel's records stay full when the destination is slow, and when goroutines
// that want to run all the time contend for the processor: windows are not sent
// in crumbs.
func TestRecordsStayFull(t *testing.T) {
	const size = 16 << 20
	slow := func(c *net.TCPConn) {
		_ = c.SetReadBuffer(32 << 10)
		buf := make([]byte, 4<<10)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			runtime.Gosched()
		}
	}
	for name, window := range map[string]int{"default windows": 0, "windows of 64 KiB": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, pumpTo, func(_ *PoolConfig, sc *ServerConfig) {
				sc.Settings.StreamWindow, sc.Settings.MaxStreamWindow = window, window
			})
			var k tap
			m.peer.Addr = k.listen(t, m.peer.Addr)
			var spin atomic.Bool
			spin.Store(true)
			t.Cleanup(func() { spin.Store(false) })
			go func() {
				for spin.Load() {
					runtime.Gosched()
				}
			}()
			c, ended := m.through(t, app(t, slow), nil)
			push(c, size)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			perMB := float64(k.records.Load()) / (size >> 20)
			t.Logf("%.1f records per MB, %.1f kB each", perMB, float64(k.bytes.Load())/1e3/float64(k.records.Load()))
			if k.bytes.Load() < size || perMB > 2*64 { // 64 are full ones
				t.Errorf("%d bytes in %d records: %.1f per MB", k.bytes.Load(), k.records.Load(), perMB)
			}
		})
	}
}
