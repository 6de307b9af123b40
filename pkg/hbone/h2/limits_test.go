package h2

import (
	"bytes"
	"context"
	"net"
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
