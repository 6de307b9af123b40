package h2

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// impatient opens streams and resets them after a while, round for round, at a
// server whose destinations do not answer. It returns how it fared.
func impatient(t *testing.T, after time.Duration) (err error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := newConn(&script{}, false, Settings{}, nil, nil)
		c.serverSide = serverSide{ctx: ctx, maxStreams: 100, handler: func(ctx context.Context, _ *hbone.Incoming) { <-ctx.Done() }}
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		connect := func(id uint32) []byte {
			block.Reset()
			_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
			_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.1:80"})
			return appendHeaders(nil, id, block.Bytes(), false, defaultFrameSize)
		}
		err = c.consume(appendSettings([]byte(preface)))
		id := uint32(1)
		for range 50 {
			for range 50 {
				if err == nil {
					err = c.consume(connect(id))
				}
				id += 2
			}
			time.Sleep(after)
			for i := range uint32(50) {
				if err == nil {
					err = c.consume(appendReset(nil, id-2*i-2, http2.ErrCodeCancel))
				}
			}
			synctest.Wait()
		}
	})
	return err
}

// Applications that give up on a destination which does not answer do not cost
// their proxy its tunnel. Who gives up at once only wants us to work.
func TestImpatientApplications(t *testing.T) {
	t.Parallel()
	if err := impatient(t, 200*time.Millisecond); err != nil {
		t.Errorf("250 streams a second given up after 200 ms each: %v", err)
	}
	if err := impatient(t, 10*time.Millisecond); err == nil {
		t.Error("5000 streams a second given up after 10 ms each pass")
	}
}

// deaf is a transport whose peer takes nothing.
type deaf struct {
	script
	cut chan struct{}
}

func (d *deaf) WriteRecords([][]byte) error {
	<-d.cut
	return net.ErrClosed
}

// A peer that grants large windows and then reads nothing makes us keep no more
// than its share of the budget, and a little for each stream.
func TestUnreadBulk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const streams = 200
		whole := hbone.NewBudget(16 << 20)
		share := whole.Share()
		d := &deaf{cut: make(chan struct{})}
		c := newConn(d, false, Settings{}, share, nil)
		c.sendWin, c.peerWindow, c.peerFrame = maxWindow, maxWindow, 1<<20
		var writers sync.WaitGroup
		var list []*stream
		for i := range uint32(streams) {
			c.mu.Lock()
			s := newStream(c, 2*i+1)
			c.streams[s.id] = s
			c.mu.Unlock()
			list = append(list, s)
			writers.Go(func() { _, _ = s.Write(make([]byte, 4<<20)) })
		}
		synctest.Wait()
		kept := 0
		c.mu.Lock()
		for _, s := range list {
			if s.out != nil {
				kept += len(s.out.data)
			}
		}
		c.mu.Unlock()
		if most := 4<<20 + streams*outSizes[0]; kept > most {
			t.Errorf("%d KiB are kept for a peer that reads nothing, want at most %d", kept>>10, most>>10)
		}
		for _, s := range list {
			s.abort(net.ErrClosed)
		}
		close(d.cut)
		writers.Wait()
		synctest.Wait()
		if used, _ := share.Used(); used != 0 {
			t.Errorf("%d bytes of the budget are never given back", used)
		}
	})
}

// fromAddr is a connection of which only the source counts.
type fromAddr struct {
	net.Conn
	addr string
}

func (f fromAddr) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(f.addr))
}

// Who hangs up and comes back gets no new share while the old one is in use: bytes
// that applications have not taken stay after their connection.
func TestShareOutlivesConnections(t *testing.T) {
	t.Parallel()
	s := NewServer(ServerConfig{Budget: hbone.NewBudget(64 << 20)})
	c := fromAddr{addr: "10.0.0.1:1"}
	first, err := s.arrive(c)
	if err != nil {
		t.Fatal(err)
	}
	first.Force(1000)
	s.depart(c)
	if again, _ := s.arrive(c); again != first {
		t.Error("another share for the same source")
	}
	s.depart(c)
	first.Give(1000)
	other := fromAddr{addr: "10.0.0.2:1"}
	if _, err := s.arrive(other); err != nil {
		t.Fatal(err)
	}
	s.depart(other)
	if n := len(s.sources); n != 0 {
		t.Errorf("%d sources are remembered", n)
	}
}

// Connections alone, without a stream, use up no more of the budget than a share and
// the smallest window each.
func TestIdleConnectionsOfOneSource(t *testing.T) {
	t.Parallel()
	whole := hbone.NewBudget(64 << 20)
	s := NewServer(ServerConfig{Budget: whole})
	share, err := s.arrive(fromAddr{addr: "10.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	const conns = 256
	for range conns {
		newConn(&script{}, false, s.settings(share), share, nil).reserveWindow()
	}
	if used, _ := whole.Used(); used > 17<<20+conns*defaultWindow {
		t.Errorf("%d connections use %d MiB", conns, used>>20)
	}
}

// A header section comes in a few frames, however little is in them.
func TestContinuations(t *testing.T) {
	t.Parallel()
	c := newConn(&script{}, false, Settings{}, nil, nil)
	c.serverSide = serverSide{ctx: t.Context(), maxStreams: 1, handler: func(context.Context, *hbone.Incoming) {}}
	err := c.consume(appendFrame(appendSettings([]byte(preface)), http2.FrameHeaders, 0, 1, nil))
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = c.consume(appendFrame(nil, http2.FrameContinuation, 0, 1, nil))
	}
	if n != maxContinuations+1 {
		t.Errorf("%d CONTINUATION frames were taken: %v", n, err)
	}
}

// Handlers that outlive their streams, because a destination still takes what had
// arrived, are bounded too.
func TestHandlersOfResetStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const streams = 10
		over := make(chan struct{})
		c := newConn(&script{}, false, Settings{}, nil, nil)
		c.serverSide = serverSide{ctx: t.Context(), maxStreams: streams, handler: func(context.Context, *hbone.Incoming) { <-over }}
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
		_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.1:80", Sensitive: true})
		err := c.consume(appendSettings([]byte(preface)))
		for id := uint32(1); id < 20*streams && err == nil; id += 2 {
			err = c.consume(appendHeaders(nil, id, block.Bytes(), false, defaultFrameSize))
			time.Sleep(2 * hasty)
			if err == nil {
				err = c.consume(appendReset(nil, id, http2.ErrCodeCancel))
			}
		}
		c.mu.Lock()
		running := c.handlers
		c.mu.Unlock()
		if err != nil || running != 2*streams {
			t.Errorf("%d handlers run, %v", running, err)
		}
		close(over)
		synctest.Wait()
	})
}
