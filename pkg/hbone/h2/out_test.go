package h2

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

// Whatever a block's size, the peer's frame size and the payload: what its records
// carry are frames that the peer takes, with the payload in them.
func TestOutBlock(t *testing.T) {
	t.Parallel()
	for _, peerFrame := range []int{defaultFrameSize, 40_000, 64 << 10, 1 << 20} {
		for class := range outSizes {
			b := newOut(class, peerFrame)
			for _, n := range []int{1, 5, b.capacity() / 2, b.capacity() - 1, b.capacity()} {
				msg := make([]byte, n)
				for i := range msg {
					msg[i] = byte(rand.Uint32())
				}
				b.copyFrom(msg)
				carries(t, plaintext([][]byte{b.frames(7, true)}), msg, peerFrame)
			}
			b.free()
		}
	}
}

// carries checks that wire is the DATA frames of stream 7 with msg, to its end.
func carries(t *testing.T, wire, msg []byte, peerFrame int) {
	t.Helper()
	fr := http2.NewFramer(nil, bytes.NewReader(wire))
	fr.SetMaxReadFrameSize(uint32(peerFrame))
	var got []byte
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", len(got), len(msg), err)
		}
		d, ok := f.(*http2.DataFrame)
		if !ok || d.StreamID != 7 {
			t.Fatalf("got %v", f)
		}
		got = append(got, d.Data()...)
		if d.StreamEnded() {
			break
		}
	}
	if !bytes.Equal(got, msg) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(msg))
	}
}

// A block for n bytes has room for them, up to the largest.
func TestOutClass(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2017, 2018, 16375, 16376, 100_000, 262_135} {
		b := newOut(outClass(n), 1<<20)
		if b.capacity() < n {
			t.Errorf("class %d for %d bytes has room for %d", b.class, n, b.capacity())
		}
		if b.class > 0 {
			if smaller := newOut(b.class-1, 1<<20); smaller.capacity() >= n && b.class < largestOut {
				t.Errorf("class %d for %d bytes, %d would do", b.class, n, b.class-1)
			}
		}
	}
}
