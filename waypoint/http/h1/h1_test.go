package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	stdhttp "net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// pipe is a connection whose input is given and whose output is kept.
type pipe struct {
	io.Reader
	bytes.Buffer
}

func (p *pipe) Read(b []byte) (int, error)      { return p.Reader.Read(b) }
func (p *pipe) SetReadDeadline(time.Time) error { return nil }

func opts() Options { return Options{Buffers: new(Buffers)} }

// forward reads every request of in and returns what would be sent on for each,
// until the first that is refused.
func forward(r io.Reader) (out []byte, n int, err error) {
	srv := NewServerConn(&pipe{Reader: r}, opts())
	for {
		var req http.Request
		if err := srv.ReadRequest(&req); err != nil {
			return out, n, err
		}
		up := &pipe{}
		cl := NewClientConn(up, opts())
		if bodyErr, writeErr := cl.WriteRequest(&req); bodyErr != nil || writeErr != nil {
			return out, n, errors.Join(bodyErr, writeErr)
		}
		out = append(out, up.Bytes()...)
		n++
		if !srv.Reusable() {
			return out, n, io.EOF
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in     string
		status int
	}{
		"CL.TE":                       {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", 400},
		"TE.CL":                       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n", 400},
		"TE.TE obfuscated":            {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501},
		"TE space before colon":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400},
		"TE tab before colon":         {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n", 400},
		"TE vertical tab value":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400},
		"TE list":                     {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
		"TE identity":                 {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501},
		"TE twice":                    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE twice, second other":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n", 400},
		"TE quoted":                   {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", 501},
		"TE empty":                    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 501},
		"TE in HTTP/1.0":              {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE folded":                   {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", 501},
		"CL twice, different":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\nContent-Length: 7\r\n\r\n", 400},
		"CL twice, same":              {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400},
		"CL list":                     {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400},
		"CL plus":                     {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400},
		"CL minus":                    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
		"CL hex":                      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", 400},
		"CL overflow":                 {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n", 400},
		"CL empty":                    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400},
		"CL underscore":               {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n", 400},
		"bare LF in head":             {"GET / HTTP/1.1\nHost: a\n\n", 400},
		"bare LF at a field":          {"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400},
		"bare LF ends the head":       {"GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
		"bare CR in value":            {"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400},
		"NUL in value":                {"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400},
		"folded line":                 {"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400},
		"first field folded":          {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
		"empty name":                  {"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400},
		"no colon":                    {"GET / HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n", 400},
		"name with space":             {"GET / HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n", 400},
		"name of 8 bits":              {"GET / HTTP/1.1\r\nHost: a\r\nX\xff: a\r\n\r\n", 400},
		"Host missing":                {"GET / HTTP/1.1\r\n\r\n", 400},
		"Host twice":                  {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		"Host twice, absolute":        {"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		"Host with path":              {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		"Host with user":              {"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400},
		"Host with space":             {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
		"Host list":                   {"GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", 400},
		"absolute with user":          {"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"absolute of other scheme":    {"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"absolute without host":       {"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"CONNECT":                     {"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405},
		"asterisk with GET":           {"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"relative target":             {"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"fragment":                    {"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"bad escape":                  {"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"escaped NUL":                 {"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"space in target":             {"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"two spaces":                  {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"leading space":               {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"HTTP/0.9":                    {"GET /\r\n\r\n", 400},
		"HTTP/2 preface":              {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		"HTTP/1.2":                    {"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
		"lower-case protocol":         {"GET / http/1.1\r\nHost: a\r\n\r\n", 400},
		"method with space":           {"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"two empty lines first":       {"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"unknown expectation":         {"POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417},
		"chunk size with sign":        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", 400},
		"chunk size with 0x":          {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400},
		"chunk size empty":            {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", 400},
		"chunk size with space":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", 400},
		"chunk size overflow":         {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", 400},
		"chunk size near overflow":    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n", 400},
		"chunk line bare LF":          {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400},
		"chunk extension with LF":     {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n", 400},
		"chunk extension with CR":     {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n", 400},
		"chunk extension too long":    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("x", 500) + "\r\nhello\r\n0\r\n\r\n", 400},
		"chunk longer than its size":  {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", 400},
		"chunk ends with LF":          {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", 400},
		"chunk ends with two octets":  {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", 400},
		"trailer with bad name":       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX Y: 1\r\n\r\n", 400},
		"trailer bare LF":             {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\n\r\n", 400},
		"head too large":              {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 61<<10) + "\r\n\r\n", 431},
		"endless head":                {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100<<10), 431},
		"too many fields":             {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 101) + "\r\n", 431},
		"response to the wrong party": {"HTTP/1.1 200 OK\r\n\r\n", 400},
	} {
		for how, r := range map[string]io.Reader{
			"at once":     strings.NewReader(c.in),
			"byte a time": iotest.OneByteReader(strings.NewReader(c.in)),
		} {
			_, _, err := forward(r)
			var e *Error
			if !errors.As(err, &e) || e.Status != c.status {
				t.Errorf("%s (%s): error %v, want status %d", name, how, err, c.status)
			}
		}
	}
}

func TestForwarded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"plain": {"GET /a?b=c HTTP/1.1\r\nHost: A:80\r\nX-Y:  z \r\n\r\n",
			"GET /a?b=c HTTP/1.1\r\nhost: A:80\r\nx-y: z\r\n\r\n"},
		"blank line first": {"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: a\r\n\r\n"},
		"hop-by-hop fields go": {"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nX: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nx: 1\r\n\r\n"},
		"absolute form wins over Host": {"GET http://b.example/x HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /x HTTP/1.1\r\nhost: b.example\r\n\r\n"},
		"absolute form without path": {"GET http://b?q HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /?q HTTP/1.1\r\nhost: b\r\n\r\n"},
		"asterisk": {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
			"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"},
		"path is normalised": {"GET /a/../%61dmin\\x?%61 HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /admin/x?%61 HTTP/1.1\r\nhost: a\r\n\r\n"},
		"length body": {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
			"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"},
		"no body on POST": {"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
			"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"},
		"chunks are framed anew": {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0003;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n",
			"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n"},
		"pipelined": {"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nxGET /3 HTTP/1.1\r\nhost: a\r\n\r\n"},
		"close ends the connection": {"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"},
		"1.0 without keep-alive": {"GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n",
			"GET /1 HTTP/1.1\r\nhost: \r\n\r\n"},
		"1.0 with keep-alive": {"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n",
			"GET /1 HTTP/1.1\r\nhost: \r\n\r\nGET /2 HTTP/1.1\r\nhost: \r\n\r\n"},
		"websocket": {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		"h2c is not offered on": {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: a\r\n\r\n"},
		"upgrade not in Connection": {"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: a\r\n\r\n"},
		"expect": {"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
			"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx"},
	} {
		out, _, err := forward(strings.NewReader(c.in))
		if err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
		if string(out) != c.want {
			t.Errorf("%s: forwarded\n%q\nwant\n%q", name, out, c.want)
		}
		slow, _, _ := forward(iotest.OneByteReader(strings.NewReader(c.in)))
		if got, want := countRequests(t, slow), countRequests(t, out); got != want {
			t.Errorf("%s: byte by byte gives %d requests, at once %d", name, got, want)
		}
	}
}

// countRequests is the next hop's view, by net/http.
func countRequests(t testing.TB, wire []byte) int {
	r := bufio.NewReader(bytes.NewReader(wire))
	for n := 0; ; n++ {
		req, err := stdhttp.ReadRequest(r)
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatalf("net/http refuses request %d of %q: %v", n, wire, err)
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			t.Fatalf("net/http refuses the body of request %d of %q: %v", n, wire, err)
		}
	}
}

// FuzzBoundaries gives any bytes to the codec and what it forwards to net/http:
// both must see the same number of requests, whatever the segmentation.
func FuzzBoundaries(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("POST /x?y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabcGET http://h/ HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, n, err := forward(bytes.NewReader(in))
		if got := countRequests(t, out); got != n {
			t.Fatalf("forwarded %d requests, net/http sees %d in %q", n, got, out)
		}
		again, m, err2 := forward(iotest.OneByteReader(bytes.NewReader(in)))
		if m != n || (err == io.EOF) != (err2 == io.EOF) || countRequests(t, again) != n {
			t.Fatalf("at once: %d requests, %v; byte by byte: %d, %v", n, err, m, err2)
		}
	})
}

// FuzzResponse reads any bytes as a response: it must end, and what is passed
// on must read the same for net/http.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), false)
	f.Add([]byte("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), false)
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 204 No\r\n\r\n"), true)
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nuntil close"), false)
	f.Fuzz(func(t *testing.T, in []byte, head bool) {
		req := &http.Request{Method: "GET", Version: http.HTTP11}
		if head {
			req.Method = "HEAD"
		}
		cl := NewClientConn(&pipe{Reader: bytes.NewReader(in)}, opts())
		var resp http.Response
		if cl.ReadResponse(req, &resp) != nil || resp.Status < 200 {
			return
		}
		down := &pipe{}
		srv := NewServerConn(down, opts())
		srv.keep = true
		if bodyErr, writeErr := srv.WriteResponse(req, &resp); bodyErr != nil || writeErr != nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(down.Bytes()))
		got, err := stdhttp.ReadResponse(r, &stdhttp.Request{Method: req.Method})
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", down.Bytes(), err)
		}
		if _, err := io.Copy(io.Discard, got.Body); err != nil {
			t.Fatalf("net/http refuses the body of %q: %v", down.Bytes(), err)
		}
		if got.StatusCode != resp.Status || r.Buffered() != 0 {
			t.Fatalf("net/http reads status %d and leaves %d bytes of %q", got.StatusCode, r.Buffered(), down.Bytes())
		}
	})
}

func TestResponses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, in, want string
		reusable         bool
	}{
		"length":         {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nhi", "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nhi", true},
		"chunked":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: u\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nt: u\r\n\r\n", true},
		"until close":    {"GET", "HTTP/1.1 200 OK\r\n\r\nhi", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false},
		"HEAD":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", true},
		"204":            {"GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", true},
		"304":            {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", true},
		"unknown status": {"GET", "HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 799 \r\ncontent-length: 0\r\n\r\n", true},
		"server closes":  {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"extra bytes":    {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"HTTP/1.0":       {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
	} {
		req := &http.Request{Method: c.method, Version: http.HTTP11}
		up := &pipe{Reader: strings.NewReader(c.in)}
		cl := NewClientConn(up, opts())
		var resp http.Response
		if err := cl.ReadResponse(req, &resp); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		down := &pipe{}
		srv := NewServerConn(down, opts())
		srv.keep = true
		if bodyErr, writeErr := srv.WriteResponse(req, &resp); bodyErr != nil || writeErr != nil {
			t.Errorf("%s: %v, %v", name, bodyErr, writeErr)
		}
		if down.String() != c.want {
			t.Errorf("%s: wrote\n%q\nwant\n%q", name, down.String(), c.want)
		}
		if cl.Reusable() != c.reusable {
			t.Errorf("%s: reusable %v", name, cl.Reusable())
		}
	}
}

func TestBadResponses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\n",
		"HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "garbage\r\n\r\n",
		"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
	} {
		cl := NewClientConn(&pipe{Reader: strings.NewReader(in)}, opts())
		var resp http.Response
		var e *Error
		if err := cl.ReadResponse(&http.Request{Method: "GET"}, &resp); !errors.As(err, &e) {
			t.Errorf("%q: error %v", in, err)
		}
	}
}

// loop is an endless client: the same request again and again.
type loop struct {
	data []byte
	off  int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.data[l.off:])
	l.off = (l.off + n) % len(l.data)
	return n, nil
}
func (l *loop) Write(p []byte) (int, error)     { return len(p), nil }
func (l *loop) SetReadDeadline(time.Time) error { return nil }

const (
	benchRequest = "GET /api/v1/things?id=42 HTTP/1.1\r\nHost: cart.shop.svc.cluster.local\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n" +
		"X-Request-Id: 3f0c8f9a-9c1c-4f8e-a8f1-5f2f5f0e7a11\r\nAuthorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n\r\n"
	benchResponse = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sat, 21 Nov 2026 11:00:00 GMT\r\nContent-Length: 16\r\n\r\n{\"answer\": true}"
)

// exchange is the codec's whole work for one proxied request.
type exchange struct {
	srv  *ServerConn
	cl   *ClientConn
	req  http.Request
	resp http.Response
}

func newExchange() *exchange {
	return &exchange{
		srv: NewServerConn(&loop{data: []byte(benchRequest)}, opts()),
		cl:  NewClientConn(&loop{data: []byte(benchResponse)}, opts()),
	}
}

func (e *exchange) run(t testing.TB) {
	if err := e.srv.ReadRequest(&e.req); err != nil {
		t.Fatal(err)
	}
	if _, err := e.cl.WriteRequest(&e.req); err != nil {
		t.Fatal(err)
	}
	if err := e.cl.ReadResponse(&e.req, &e.resp); err != nil {
		t.Fatal(err)
	}
	if _, err := e.srv.WriteResponse(&e.req, &e.resp); err != nil {
		t.Fatal(err)
	}
}

func TestNoAllocations(t *testing.T) {
	e := newExchange()
	for range 100 {
		e.run(t)
	}
	if n := testing.AllocsPerRun(1000, func() { e.run(t) }); n > 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func BenchmarkExchange(b *testing.B) {
	e := newExchange()
	b.ReportAllocs()
	for b.Loop() {
		e.run(b)
	}
}

// BenchmarkExchangeNetHTTP is the same work by the standard library's codec.
func BenchmarkExchangeNetHTTP(b *testing.B) {
	in := bufio.NewReader(&loop{data: []byte(benchRequest)})
	up := bufio.NewReader(&loop{data: []byte(benchResponse)})
	out := bufio.NewWriter(io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		req, err := stdhttp.ReadRequest(in)
		if err != nil {
			b.Fatal(err)
		}
		if err := req.Write(out); err != nil {
			b.Fatal(err)
		}
		resp, err := stdhttp.ReadResponse(up, req)
		if err != nil {
			b.Fatal(err)
		}
		if err := resp.Write(out); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}
