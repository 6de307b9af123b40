package h2

import (
	"sync"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// An outBlock is a borrowed buffer that leaves as it is: payload is read from a
// socket into the places where frames and TLS records will have it, headers and
// tags are put around it, and the whole is one piece of a socket write.
//
//	| record header | frame header | payload … | tag | record header | payload … | tag |
//
// A frame begins a record. It is as many records as the peer's frames may be long;
// of a peer that takes large frames the block is one frame.
type outBlock struct {
	data  []byte
	class int
	per   int // records in a frame
	n     int // bytes of payload
	taken bool
	paid  *hbone.Budget // what it was taken from; nil if it was not

	places [maxOutRecords][]byte // what space returns
}

// outSizes are the sizes of outBlocks, smallest first: one small record, then
// whole numbers of full ones. Twice the largest would save a few per cent of CPU per
// byte, for twice the memory and as long a turn of each stream's.
var outSizes = [...]int{2 << 10, tlsconn.FullRecord, 4 * tlsconn.FullRecord, maxOutRecords * tlsconn.FullRecord}

const (
	largestOut    = len(outSizes) - 1
	maxOutRecords = 16
)

var outPools [len(outSizes)]sync.Pool

// newOut borrows an empty block for a peer that takes frames of that size.
func newOut(class, peerFrame int) *outBlock {
	borrowed.Add(int64(outSizes[class]))
	b, ok := outPools[class].Get().(*outBlock)
	if !ok {
		b = &outBlock{data: make([]byte, outSizes[class]), class: class}
	}
	b.per = max(1, peerFrame/tlsconn.MaxPlain)
	return b
}

// borrowOut is newOut within the budget: a peer that reads nothing keeps what waits
// for it. When the budget is used up a smallest block has to do, which every stream
// may have.
func (c *conn) borrowOut(class int) *outBlock {
	for class > 0 && !c.budget.Take(int64(outSizes[class])) {
		class--
	}
	b := newOut(class, c.peerFrame)
	if class > 0 {
		b.paid = c.budget
	}
	return b
}

// free gives b back.
func (b *outBlock) free() {
	b.paid.Give(int64(len(b.data)))
	b.paid = nil
	borrowed.Add(-int64(len(b.data)))
	b.n, b.taken = 0, false
	outPools[b.class].Put(b)
}

// records is how many records b has room for.
func (b *outBlock) records() int { return (len(b.data) + tlsconn.FullRecord - 1) / tlsconn.FullRecord }

// capacity is how much payload b has room for.
func (b *outBlock) capacity() int {
	n := b.records()
	frames := (n + b.per - 1) / b.per
	return len(b.data) - n*(tlsconn.HeaderRoom+tlsconn.TailRoom) - frames*frameHeaderLen
}

// outClass returns the class of the smallest block for n bytes, or the largest.
func outClass(n int) int {
	for class, size := range outSizes[:largestOut] {
		if n <= size-tlsconn.HeaderRoom-tlsconn.TailRoom-frameHeaderLen {
			return class
		}
	}
	return largestOut
}

// space returns the places of the first n bytes of payload.
func (b *outBlock) space(n int) [][]byte {
	vec := b.places[:0]
	for i := 0; n > 0; i++ {
		at := i*tlsconn.FullRecord + tlsconn.HeaderRoom
		end := min(at+tlsconn.MaxPlain, len(b.data)-tlsconn.TailRoom)
		if i%b.per == 0 {
			at += frameHeaderLen
		}
		end = min(end, at+n)
		vec = append(vec, b.data[at:end])
		n -= end - at
	}
	return vec
}

// copyFrom takes the payload from p, as much as there is room for.
func (b *outBlock) copyFrom(p []byte) {
	b.n = min(len(p), b.capacity())
	for _, place := range b.space(b.n) {
		p = p[copy(place, p):]
	}
}

// frames puts the frames' headers around the payload and returns the run of
// records that carries them. With end the last frame ends the stream.
func (b *outBlock) frames(id uint32, end bool) []byte {
	most := b.per*tlsconn.MaxPlain - frameHeaderLen
	frames := 0
	for left := b.n; left > 0; frames++ {
		n := min(left, most)
		left -= n
		var flags http2.Flags
		if end && left == 0 {
			flags = http2.FlagDataEndStream
		}
		at := frames*b.per*tlsconn.FullRecord + tlsconn.HeaderRoom
		putFrameHeader(b.data[at:], n, http2.FrameData, flags, id)
	}
	return b.data[:tlsconn.RunLength(b.n+frames*frameHeaderLen)]
}

// plainOf returns what a run of one record carries.
func plainOf(run []byte) []byte {
	return run[tlsconn.HeaderRoom : len(run)-tlsconn.TailRoom]
}
