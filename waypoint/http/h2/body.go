package h2

import (
	"io"
	stdhttp "net/http"
	"strconv"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// body is a message's content while it streams by.
type body struct {
	src     io.Reader
	length  int64 // -1 when only its end will tell
	trailer *http.Header
	fields  func() stdhttp.Header // what the trailer is, once src has ended
	count   *atomic.Int64
	ended   bool
}

// Read implements http.Body.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	b.count.Add(int64(n))
	if err == io.EOF && !b.ended {
		b.ended = true
		fields := b.fields()
		take(b.trailer, fields)
		b.count.Add(int64(headSize(fields)))
	}
	return n, err
}

// Length implements http.Body.
func (b *body) Length() int64 { return b.length }

// Buffered implements http.Body: what net/http holds it does not tell.
func (b *body) Buffered() int { return 0 }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
