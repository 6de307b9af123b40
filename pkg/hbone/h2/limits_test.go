package h2

import (
	"bytes"
	"context"
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
