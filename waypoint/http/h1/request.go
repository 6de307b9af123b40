package h1

import (
	"bytes"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// parseRequest reads a complete head into req and fr.
func parseRequest(head []byte, req *http.Request, fr *framing, fields int) error {
	line, rest := cutLine(head)
	target, err := parseRequestLine(line, req)
	if err != nil {
		return err
	}
	if err := parseFields(rest, &req.Header, fr, fields); err != nil {
		return err
	}
	if err := fr.check(req.Version); err != nil {
		return err
	}
	if err := setTarget(req, target, fr); err != nil {
		return err
	}
	if req.Version == http.HTTP11 { // both are to be ignored in HTTP/1.0
		req.Upgrade, req.ExpectContinue = fr.upgrade, fr.expect
	}
	return nil
}

// parseRequestLine reads "method SP target SP HTTP/1.x".
func parseRequestLine(line []byte, req *http.Request) (target []byte, err error) {
	sp := bytes.IndexByte(line, ' ')
	last := bytes.LastIndexByte(line, ' ')
	if sp <= 0 || last == sp {
		return nil, errStartLine
	}
	if !all(line[:sp], isToken) {
		return nil, errMethod
	}
	req.Method = method(line[:sp])
	switch string(line[last+1:]) {
	case "HTTP/1.1":
		req.Version = http.HTTP11
	case "HTTP/1.0":
		req.Version = http.HTTP10
	default:
		if bytes.HasPrefix(line[last+1:], []byte("HTTP/")) {
			return nil, errVersion
		}
		return nil, errStartLine
	}
	target = line[sp+1 : last]
	if len(target) == 0 || !all(target, isTarget) {
		return nil, errTarget
	}
	if req.Method == "CONNECT" {
		return nil, errConnect
	}
	return target, nil
}

// setTarget applies the four forms of a target (RFC 9112 §3.2) and the rules
// about Host.
func setTarget(req *http.Request, target []byte, fr *framing) error {
	if fr.hosts > 1 {
		return errHostTwice
	}
	if fr.hosts == 0 && req.Version == http.HTTP11 {
		return errHostMissing
	}
	authority := fr.host
	switch {
	case target[0] == '/':
	case len(target) == 1 && target[0] == '*':
		if req.Method != "OPTIONS" {
			return errTarget
		}
	default: // absolute-form: its authority replaces Host (RFC 9112 §3.2.2)
		var err error
		if authority, target, err = splitAbsolute(req, target); err != nil {
			return err
		}
	}
	return address(req, authority, target)
}

// CheckTarget gives req, whose method is set, an authority and a target of origin
// or asterisk form under the rules for those of HTTP/1.1, whatever the version that
// they came in.
func CheckTarget(req *http.Request, authority, target []byte) error {
	switch {
	case req.Method == "" || !all([]byte(req.Method), isToken):
		return errMethod
	case req.Method == "CONNECT":
		return errConnect
	case len(target) == 0 || !all(target, isTarget):
		return errTarget
	case target[0] != '/' && (string(target) != "*" || req.Method != "OPTIONS"):
		return errTarget
	}
	return address(req, authority, target)
}

// address sets authority and target, the path in its normal form.
func address(req *http.Request, authority, target []byte) error {
	if !validAuthority(authority) {
		return errAuthority
	}
	path, ok := http.NormalizePath(pathOf(target))
	if !ok {
		return errTarget
	}
	req.SetAuthority(authority)
	req.SetTarget(target)
	if len(path) != len(req.Path()) || &path[0] != &target[0] {
		req.SetPath(path)
	}
	return nil
}

func pathOf(target []byte) []byte {
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[:i]
	}
	return target
}

func splitAbsolute(req *http.Request, target []byte) (authority, rest []byte, err error) {
	i := bytes.Index(target, []byte("://"))
	if i <= 0 {
		return nil, nil, errTarget
	}
	switch {
	case http.EqualFoldString(target[:i], "http"):
		req.Scheme = "http"
	case http.EqualFoldString(target[:i], "https"):
		req.Scheme = "https"
	default:
		return nil, nil, errTarget
	}
	target = target[i+3:]
	end := bytes.IndexAny(target, "/?")
	if end < 0 {
		end = len(target)
	}
	authority, rest = target[:end], target[end:]
	if len(authority) == 0 {
		return nil, nil, errAuthority
	}
	if len(rest) == 0 {
		return authority, []byte{'/'}, nil
	}
	if rest[0] == '?' {
		return authority, append([]byte{'/'}, rest...), nil
	}
	return authority, rest, nil
}

// validAuthority accepts host[:port] with an IPv6 literal in brackets, and the
// empty authority that RFC 9112 §3.2 allows.
func validAuthority(a []byte) bool {
	if len(a) == 0 {
		return true
	}
	if !all(a, isHost) {
		return false
	}
	host := http.StripPort(a)
	if len(host) == 0 {
		return false
	}
	if host[0] == '[' {
		return host[len(host)-1] == ']' && bytes.Count(host, []byte("[")) == 1 && bytes.Count(host, []byte("]")) == 1
	}
	return !bytes.ContainsAny(host, ":[]")
}
