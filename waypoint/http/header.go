package http

// Header is an ordered list of fields. Their text lives in one buffer and each
// field is two pairs of offsets into it, so that a header costs no allocation
// once its buffer has grown to the size of the traffic.
type Header struct {
	buf    []byte
	fields []field
}

type field struct{ name, value span }

type span struct{ start, end uint32 }

func (h *Header) text(s span) []byte { return h.buf[s.start:s.end:s.end] }

// Reset removes every field and keeps the memory, unless one huge message made
// it much larger than ordinary ones need.
func (h *Header) Reset() {
	const keep = 16 << 10
	if cap(h.buf) > keep {
		h.buf = nil
	}
	h.buf, h.fields = h.buf[:0], h.fields[:0]
}

// Len is the number of fields.
func (h *Header) Len() int { return len(h.fields) }

// Size is the length of all names and values together, in bytes.
func (h *Header) Size() int {
	n := 0
	for _, f := range h.fields {
		n += int(f.name.end-f.name.start) + int(f.value.end-f.value.start)
	}
	return n
}

// At returns the i-th field. The name is in lower case.
func (h *Header) At(i int) (name, value []byte) {
	f := h.fields[i]
	return h.text(f.name), h.text(f.value)
}

func (h *Header) find(name string, from int) int {
	for i := from; i < len(h.fields); i++ {
		if s := h.fields[i].name; int(s.end-s.start) == len(name) && string(h.buf[s.start:s.end]) == name {
			return i
		}
	}
	return -1
}

// Get returns the first value of the named field, and whether there is one.
// Names are in lower case here and everywhere below.
func (h *Header) Get(name string) ([]byte, bool) {
	i := h.find(name, 0)
	if i < 0 {
		return nil, false
	}
	return h.text(h.fields[i].value), true
}

// Has reports whether the named field is present.
func (h *Header) Has(name string) bool { return h.find(name, 0) >= 0 }

// Joined returns every value of the named field joined by commas, which is how
// several fields of one name are compared (RFC 9110 §5.3). With one value it
// allocates nothing.
func (h *Header) Joined(name string) ([]byte, bool) {
	i := h.find(name, 0)
	if i < 0 {
		return nil, false
	}
	first := h.text(h.fields[i].value)
	i = h.find(name, i+1)
	if i < 0 {
		return first, true
	}
	all := append([]byte(nil), first...)
	for ; i >= 0; i = h.find(name, i+1) {
		all = append(append(all, ','), h.text(h.fields[i].value)...)
	}
	return all, true
}

func (h *Header) put(b []byte) span {
	start := uint32(len(h.buf))
	h.buf = append(h.buf, b...)
	return span{start, uint32(len(h.buf))}
}

func (h *Header) putString(s string) span {
	start := uint32(len(h.buf))
	h.buf = append(h.buf, s...)
	return span{start, uint32(len(h.buf))}
}

// Add appends a field. name must be lower case.
func (h *Header) Add(name, value string) {
	h.fields = append(h.fields, field{h.putString(name), h.putString(value)})
}

// AddValue appends a field. name must be lower case.
func (h *Header) AddValue(name string, value []byte) {
	h.fields = append(h.fields, field{h.putString(name), h.put(value)})
}

// AddBytes appends a field. name must be lower case.
func (h *Header) AddBytes(name, value []byte) {
	h.fields = append(h.fields, field{h.put(name), h.put(value)})
}

// AddLower appends a field and lowers its name's letters.
func (h *Header) AddLower(name, value []byte) {
	n := h.put(name)
	for i := n.start; i < n.end; i++ {
		if c := h.buf[i]; 'A' <= c && c <= 'Z' {
			h.buf[i] = c + 'a' - 'A'
		}
	}
	h.fields = append(h.fields, field{n, h.put(value)})
}

// Set replaces every field of that name by one, in the first one's place.
func (h *Header) Set(name, value string) {
	i := h.find(name, 0)
	if i < 0 {
		h.Add(name, value)
		return
	}
	h.fields[i].value = h.putString(value)
	h.removeFrom(name, i+1)
}

// Append adds value to the named field's list, or as a new field.
func (h *Header) Append(name, value string) {
	i := h.find(name, 0)
	if i < 0 {
		h.Add(name, value)
		return
	}
	old := h.fields[i].value
	start := uint32(len(h.buf))
	h.buf = append(h.buf, h.buf[old.start:old.end]...)
	h.buf = append(append(h.buf, ','), value...)
	h.fields[i].value = span{start, uint32(len(h.buf))}
}

// Remove removes every field of that name.
func (h *Header) Remove(name string) { h.removeFrom(name, 0) }

func (h *Header) removeFrom(name string, from int) {
	i := h.find(name, from)
	if i < 0 {
		return
	}
	kept := h.fields[:i]
	for ; i < len(h.fields); i++ {
		if s := h.fields[i].name; string(h.buf[s.start:s.end]) != name {
			kept = append(kept, h.fields[i])
		}
	}
	h.fields = kept
}

// removeName is Remove for a name of any case in a message's own text.
func (h *Header) removeName(name []byte) {
	kept := h.fields[:0]
	for _, f := range h.fields {
		if !EqualFold(h.buf[f.name.start:f.name.end], name) {
			kept = append(kept, f)
		}
	}
	h.fields = kept
}

// RemoveListed removes each field that list, a Connection field's value, names:
// those fields were for one hop only (RFC 9110 §7.6.1).
func (h *Header) RemoveListed(list []byte) {
	for len(list) > 0 {
		var name []byte
		name, list = NextToken(list)
		if len(name) > 0 {
			h.removeName(name)
		}
	}
}

// CopyFrom makes h a copy of src.
func (h *Header) CopyFrom(src *Header) {
	h.buf = append(h.buf[:0], src.buf...)
	h.fields = append(h.fields[:0], src.fields...)
}

// NextToken splits a comma-separated list after its first element and trims the
// element's white space.
func NextToken(list []byte) (token, rest []byte) {
	i := index(list, ',')
	if i < 0 {
		return Trim(list), nil
	}
	return Trim(list[:i]), list[i+1:]
}

// Trim removes spaces and tabs at both ends.
func Trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// EqualFold compares ASCII without regard to case.
func EqualFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// EqualFoldString is EqualFold for a string that is already in lower case.
func EqualFoldString(a []byte, s string) bool {
	if len(a) != len(s) {
		return false
	}
	for i := range a {
		if lower(a[i]) != s[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// DropLast removes the field that was added last.
func (h *Header) DropLast() { h.fields = h.fields[:len(h.fields)-1] }
