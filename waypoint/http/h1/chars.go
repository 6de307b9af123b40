package h1

// Classes of octets, as bits of a table.
const (
	isToken  = 1 << iota // RFC 9110 §5.6.2 tchar
	isValue              // may stand in a field value: VCHAR, obs-text, SP, HTAB
	isTarget             // may stand in a request target: VCHAR, obs-text
	isHost               // may stand in an authority: reg-name, IP literal, port
	isDigit
)

// chars is never written after start-up.
var chars = makeChars()

func makeChars() (t [256]uint8) {
	mark := func(class uint8, octets string) {
		for i := range len(octets) {
			t[octets[i]] |= class
		}
	}
	for c := range 256 {
		if c > ' ' && c != 0x7f {
			t[c] |= isTarget | isValue
		}
	}
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	mark(isValue, " \t")
	mark(isToken, alnum+"!#$%&'*+-.^_`|~")
	mark(isHost, alnum+"-._~%!$&'()*+,;=:[]")
	mark(isDigit, "0123456789")
	// A fragment never travels (RFC 9110 §4.2.5); a path rule could miss it.
	t['#'] &^= isTarget
	return t
}

func all(b []byte, class uint8) bool {
	for _, c := range b {
		if chars[c]&class == 0 {
			return false
		}
	}
	return true
}

// parseUint reads digits only: no sign, no space, no overflow.
func parseUint(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if chars[c]&isDigit == 0 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// method returns the name of a method without allocating for the usual ones.
func method(b []byte) string {
	switch string(b) {
	case "GET":
		return "GET"
	case "HEAD":
		return "HEAD"
	case "POST":
		return "POST"
	case "PUT":
		return "PUT"
	case "DELETE":
		return "DELETE"
	case "PATCH":
		return "PATCH"
	case "OPTIONS":
		return "OPTIONS"
	}
	return string(b)
}
