package h1

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Whatever the version that a request came in, HTTP/1.1 can carry what was accepted,
// and means the same by it.
func FuzzCheckTarget(f *testing.F) {
	f.Add("GET", "a:80", "/a/../b?c")
	f.Add("OPTIONS", "", "*")
	f.Add("POST", "[::1]:80", "/%61//")
	f.Add("CONNECT", "a:80", "a:80")
	f.Add("GET", "a b", "/\r\n")
	f.Fuzz(func(t *testing.T, method, authority, target string) {
		var req http.Request
		req.Reset()
		req.Method = method
		if CheckTarget(&req, []byte(authority), []byte(target)) != nil {
			return
		}
		head := method + " " + string(req.Target()) + " HTTP/1.1\r\nhost: " + string(req.Authority()) + "\r\n\r\n"
		if strings.Count(head, "\r\n") != 3 {
			t.Fatalf("%q", head)
		}
		var again http.Request
		var fr framing
		again.Reset()
		if err := parseRequest([]byte(head), &again, &fr, 100); err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		if string(again.Target()) != string(req.Target()) || string(again.Authority()) != string(req.Authority()) || again.Method != method {
			t.Fatalf("%q is read as %s %s %s", head, again.Method, again.Authority(), again.Target())
		}
	})
}
