package tlsconn

// How a run of records lies in a buffer, so that a record is sealed where its
// plaintext was written and a batch is one piece of memory:
//
//	| header 5 | plaintext, up to 16384 | tail 17 | header 5 | plaintext … | tail 17 |
//
// Every record of a run but the last is full. WriteRecords fills in headers and
// tails (the content type and the tag of RFC 8446 §5.2).
const (
	HeaderRoom = 5       // bytes free before the plaintext of a record
	TailRoom   = 1 + 16  // bytes free behind it
	MaxPlain   = 1 << 14 // plaintext of a full record
	FullRecord = HeaderRoom + MaxPlain + TailRoom
)

// RunLength returns the bytes that a run with n bytes of plaintext takes; 0 for none.
func RunLength(n int) int { return n + (n+MaxPlain-1)/MaxPlain*(HeaderRoom+TailRoom) }

// Append copies p into a run of w bytes of plaintext that lies in buf, as far as
// there is room, and returns how much it took.
func Append(buf []byte, w int, p []byte) int {
	took := 0
	for len(p) > 0 {
		at := w / MaxPlain * FullRecord
		room := min(len(buf)-at-TailRoom, FullRecord-TailRoom) // where this record's plaintext must end, from at
		start := HeaderRoom + w%MaxPlain
		if room <= start {
			break
		}
		n := copy(buf[at+start:at+room], p)
		p = p[n:]
		w += n
		took += n
	}
	return took
}
