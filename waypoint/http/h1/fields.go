package h1

import (
	"bytes"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// framing is what a head says about its own message and connection.
type framing struct {
	length     int64 // Content-Length, -1 absent
	chunked    bool
	host       []byte
	hosts      int
	close      bool
	keepAlive  bool
	upgrade    []byte // value of Upgrade, if Connection lists it
	expect     bool
	connection bool // a Connection field is present
}

// parseFields reads field lines up to the empty line that ends block. Fields
// that belong to this hop go into fr, all others into h.
func parseFields(block []byte, h *http.Header, fr *framing, limit int) error {
	*fr = framing{length: -1}
	for count := 0; ; count++ {
		line, rest := cutLine(block)
		if len(line) == 0 {
			break
		}
		if count == limit {
			return ErrTooManyFields
		}
		if err := parseField(line, h); err != nil {
			return err
		}
		if err := fr.take(h); err != nil {
			return err
		}
		block = rest
	}
	if fr.connection {
		fr.takeConnection(h)
	} else {
		fr.upgrade = nil
	}
	return nil
}

// cutLine splits a block, in which every LF is known to follow a CR, after its first line.
func cutLine(block []byte) (line, rest []byte) {
	i := bytes.IndexByte(block, '\n')
	return block[:i-1], block[i+1:]
}

func parseField(line []byte, h *http.Header) error {
	if line[0] == ' ' || line[0] == '\t' {
		return errFold
	}
	colon := 0
	for colon < len(line) && chars[line[colon]]&isToken != 0 {
		colon++
	}
	if colon == 0 || colon == len(line) || line[colon] != ':' {
		return errFieldName
	}
	value := http.Trim(line[colon+1:])
	if !all(value, isValue) {
		return errFieldValue
	}
	h.AddLower(line[:colon], value)
	return nil
}

// take looks at the field that was just added and takes it out of h when it is
// about this hop.
func (fr *framing) take(h *http.Header) error {
	name, value := h.At(h.Len() - 1)
	switch string(name) {
	case "host":
		fr.host = value
		fr.hosts++
	case "content-length":
		if fr.length >= 0 {
			return errLengthTwice
		}
		n, ok := parseUint(value)
		if !ok {
			return errLengthValue
		}
		fr.length = n
	case "transfer-encoding":
		if fr.chunked {
			return errCodingTwice
		}
		if !http.EqualFoldString(value, "chunked") {
			return errCoding
		}
		fr.chunked = true
	case "connection":
		fr.connection = true
		return nil // stays until all fields are known
	case "upgrade":
		fr.upgrade = value
	case "expect":
		if !http.EqualFoldString(value, "100-continue") {
			return errExpectation
		}
		fr.expect = true
	case "te":
		if http.EqualFoldString(value, "trailers") {
			return nil
		}
	case "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "http2-settings":
	default:
		return nil
	}
	h.DropLast()
	return nil
}

// takeConnection applies every Connection field: its options, and the fields
// that it declares to be for this hop only.
func (fr *framing) takeConnection(h *http.Header) {
	upgrade := false
	list, _ := h.Joined("connection")
	for rest := list; len(rest) > 0; {
		var token []byte
		token, rest = http.NextToken(rest)
		switch {
		case http.EqualFoldString(token, "close"):
			fr.close = true
		case http.EqualFoldString(token, "keep-alive"):
			fr.keepAlive = true
		case http.EqualFoldString(token, "upgrade"):
			upgrade = true
		}
	}
	if !upgrade || !allowedUpgrade(fr.upgrade) {
		fr.upgrade = nil
	}
	h.RemoveListed(list)
	h.Remove("connection")
}

// allowedUpgrade refuses protocols that would carry HTTP requests past the
// waypoint's policies. A server may ignore Upgrade (RFC 9110 §7.8), so the
// request goes on without.
func allowedUpgrade(p []byte) bool {
	for rest := p; len(rest) > 0; {
		var token []byte
		token, rest = http.NextToken(rest)
		if i := bytes.IndexByte(token, '/'); i >= 0 {
			token = token[:i]
		}
		for _, no := range [...]string{"h2c", "h2", "http", "tls"} {
			if http.EqualFoldString(token, no) {
				return false
			}
		}
	}
	return len(p) > 0
}

// persistent reports whether the connection may serve another message.
func (fr *framing) persistent(v http.Version) bool {
	return !fr.close && (v == http.HTTP11 || fr.keepAlive)
}

func (fr *framing) check(v http.Version) error {
	switch {
	case fr.chunked && fr.length >= 0:
		return errLengthCoding
	case fr.chunked && v == http.HTTP10:
		return errCodingVersion
	}
	return nil
}
