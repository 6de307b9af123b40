package http

import (
	"fmt"
	"strings"
	"testing"
)

func TestNormalizePath(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/": "/", "/a/b": "/a/b", "/a//b/": "/a//b/", "*": "*",
		"/a/./b": "/a/b", "/a/../b": "/b", "/../../a": "/a", "/a/..": "/", "/a/b/..": "/a/", "/a/.": "/a/", "/.": "/", "/..": "/",
		"/%61dmin": "/admin", "/%2e%2e/x": "/x", "/a%2fb": "/a%2fb", "/a%2Fb": "/a%2Fb", "/%7Euser": "/~user", "/%c3%a9": "/%c3%a9",
		`/a\b`: "/a/b", `/a\..\b`: "/b", "/.hidden": "/.hidden", "/a..b": "/a..b", "/...": "/...", "/%25": "/%25",
		"": "!", "a": "!", "/%": "!", "/%4": "!", "/%zz": "!", "/%00": "!", "**": "!",
	} {
		got, ok := NormalizePath([]byte(in))
		if s := string(got); !ok && want != "!" || ok && s != want {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e./x", `/\..`, "/./.", "/%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		once, ok := NormalizePath([]byte(in))
		if !ok {
			return
		}
		first := string(once)
		if first != "*" && (first == "" || first[0] != '/') {
			t.Fatalf("%q becomes %q", in, first)
		}
		for _, seg := range strings.Split(first, "/") {
			if seg == ".." || seg == "." {
				t.Fatalf("%q becomes %q", in, first)
			}
		}
	})
}

func header(h *Header) string {
	var out []string
	for i := range h.Len() {
		n, v := h.At(i)
		out = append(out, fmt.Sprintf("%s=%s", n, v))
	}
	return strings.Join(out, " ")
}

func TestHeader(t *testing.T) {
	t.Parallel()
	var h Header
	h.AddLower([]byte("X-A"), []byte("1"))
	h.Add("x-b", "2")
	h.AddBytes([]byte("x-a"), []byte("3"))
	if v, ok := h.Joined("x-a"); string(v) != "1,3" || !ok {
		t.Errorf("%q", v)
	}
	h.Append("x-b", "4")
	h.Set("x-a", "5")
	h.Set("x-c", "6")
	if got := header(&h); got != "x-a=5 x-b=2,4 x-c=6" {
		t.Error(got)
	}
	var c Header
	c.CopyFrom(&h)
	h.RemoveListed([]byte(" X-A ,close, x-c"))
	if header(&h) != "x-b=2,4" || header(&c) != "x-a=5 x-b=2,4 x-c=6" {
		t.Errorf("%s; %s", header(&h), header(&c))
	}
	h.Reset()
	if _, ok := h.Get("x-b"); ok || h.Len() != 0 {
		t.Error("not empty after Reset")
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"a": "a", "a:80": "a", "[::1]": "[::1]", "[::1]:80": "[::1]", "": "", ":80": ""} {
		if got := StripPort([]byte(in)); string(got) != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestRequestTarget(t *testing.T) {
	t.Parallel()
	var r Request
	r.Reset()
	r.SetTarget([]byte("/a/b?c=d"))
	r.SetPath([]byte("/longer/than/before"))
	if string(r.Target()) != "/longer/than/before?c=d" || string(r.Query()) != "c=d" || string(r.Path()) != "/longer/than/before" {
		t.Errorf("%s %s %s", r.Target(), r.Path(), r.Query())
	}
}
