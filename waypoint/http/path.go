package http

import "bytes"

// NormalizePath brings a path into the one form that policies and routes are
// written for: unreserved characters are decoded, dot segments removed and
// backslashes turned (RFC 3986 §6.2.2, what upstream's default "BASE" does).
// Without it "/public/../admin" and "/%61dmin" would pass a rule about /admin.
// Escaped slashes and runs of slashes stay. A path that needs nothing is
// returned as it is, and ok is false for one that is not a path at all.
func NormalizePath(p []byte) (out []byte, ok bool) {
	if len(p) == 0 || p[0] != '/' {
		return p, len(p) == 1 && p[0] == '*' // OPTIONS *
	}
	if !needsNormalizing(p) {
		return p, true
	}
	decoded, ok := decodeUnreserved(p)
	if !ok {
		return p, false
	}
	return removeDotSegments(decoded), true
}

func needsNormalizing(p []byte) bool {
	return bytes.IndexByte(p, '%') >= 0 || bytes.IndexByte(p, '\\') >= 0 || bytes.Contains(p, []byte("/."))
}

func decodeUnreserved(p []byte) ([]byte, bool) {
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			out = append(out, '/')
		case '%':
			if i+2 >= len(p) {
				return nil, false
			}
			hi, ok1 := unhex(p[i+1])
			lo, ok2 := unhex(p[i+2])
			if !ok1 || !ok2 {
				return nil, false
			}
			if c := hi<<4 | lo; unreserved(c) {
				out = append(out, c)
			} else if c == 0 {
				return nil, false
			} else {
				out = append(out, p[i:i+3]...)
			}
			i += 2
		default:
			out = append(out, p[i])
		}
	}
	return out, true
}

// removeDotSegments is RFC 3986 §5.2.4 for an absolute path, in place.
func removeDotSegments(p []byte) []byte {
	out := p[:0]
	for i := 0; i < len(p); {
		end := i + 1
		for end < len(p) && p[end] != '/' {
			end++
		}
		seg := p[i+1 : end]
		last := end == len(p)
		switch string(seg) {
		case ".":
			if last {
				out = append(out, '/')
			}
		case "..":
			if j := bytes.LastIndexByte(out, '/'); j >= 0 {
				out = out[:j]
			}
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, p[i:end]...)
		}
		i = end
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
